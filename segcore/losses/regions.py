"""Soft areas of the predicted and the labelled region of each class, for the overlap losses."""

from typing import NamedTuple

import torch
from torch import Tensor

from segcore.losses.pixels import labelled, one_hot


class Regions(NamedTuple):
    """Sums over pixels for each class; B is 1 for the whole batch, N for each image apart.

    Shape:
        overlap: [B, K] sum of p g
        predicted: [B, K] sum of p
        predicted_squares: [B, K] sum of p^2
        actual: [B, K] sum of g
        present: [B, K] bool, the class is in the target
        first_class: 0, or 1 where K stands for the foreground alone
    """

    overlap: Tensor
    predicted: Tensor
    predicted_squares: Tensor
    actual: Tensor
    present: Tensor
    first_class: int


def regions(logits: Tensor, target: Tensor, *, ignore_index: int, per_image: bool) -> Regions:
    """Soft areas of each class over the labelled pixels.

    Shape:
        logits: [N, K, *] float, or [N, 1, *] for a foreground logit
        target: [N, *] integer
    """
    pixels = labelled(logits, target, ignore_index)
    first = pixels.first_class
    probability = torch.softmax(pixels.logits, dim=1) * pixels.valid.unsqueeze(1)
    probability, truth = probability[:, first:], one_hot(pixels)[:, first:]

    def area(values: Tensor) -> Tensor:
        per_class = values.flatten(2).sum(2)
        return per_class if per_image else per_class.sum(0, keepdim=True)

    actual = area(truth)
    return Regions(
        overlap=area(probability * truth),
        predicted=area(probability),
        predicted_squares=area(probability.square()),
        actual=actual.to(probability.dtype),
        present=actual > 0,
        first_class=first,
    )


def foreground(class_weights: Tensor | None, first_class: int) -> Tensor | None:
    """The weights of the classes that the region losses average."""
    return None if class_weights is None else class_weights[first_class:]
