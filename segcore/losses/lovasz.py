"""Lovász-softmax: the convex extension of 1 - IoU.

Reference: Berman, Triki & Blaschko 2018, arXiv:1705.08790.
"""

import torch
from torch import Tensor

from segcore.losses.pixels import class_mean, labelled, one_hot
from segcore.losses.regions import foreground


def lovasz_softmax(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    per_image: bool = False,
) -> Tensor:
    """Mean over the classes present of <errors, Lovász gradient>, errors = |g - p|.

    Hard predictions (p of 0 or 1) give 1 - IoU exactly.

    Args:
        class_weights: [K] weights of that mean; two (background, foreground) for one logit.
        per_image: the IoU of each image, not of the batch.

    Shape:
        logits: [N, K, *] float, or [N, 1, *] for a foreground logit (its IoU alone)
        target: [N, *] integer
        returns: scalar in 0..1; 0 where no class is present
    """
    pixels = labelled(logits, target, ignore_index)
    first = pixels.first_class
    truth = _rows(one_hot(pixels)[:, first:], per_image)
    probability = _rows(torch.softmax(pixels.logits, dim=1)[:, first:], per_image)
    valid = _rows(pixels.valid.unsqueeze(1), per_image)
    errors = (truth.to(probability.dtype) - probability).abs()
    losses = (errors * _slopes(errors.detach(), truth, valid)).sum(2)
    return class_mean(losses, truth.any(2), foreground(class_weights, first))


def _rows(values: Tensor, per_image: bool) -> Tensor:
    """[N, K, *] as [B, K, P]: an image a row of B, or the whole batch in one."""
    if per_image:
        return values.flatten(2)
    return values.transpose(0, 1).flatten(1).unsqueeze(0)


@torch.no_grad()
def _slopes(errors: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """How much the Jaccard loss grows as each pixel, worst first, joins the mistaken ones.

    One class at a time, to keep the sort's memory small. Ignored pixels sort last, behind errors
    of 0, where they change no other pixel's slope.

    Shape:
        errors: [B, K, P] in 0..1
        truth: [B, K, P] bool
        valid: [B, 1, P] bool
        returns: [B, K, P], 0 at ignored pixels
    """
    slopes = torch.empty_like(errors)
    for index in range(errors.shape[1]):
        ranked = errors[:, index].masked_fill(~valid[:, 0], -1.0)
        order = ranked.argsort(dim=1, descending=True, stable=True)
        hit = truth[:, index].gather(1, order).to(torch.int64)
        total = hit.sum(1, keepdim=True)
        intersection = total - hit.cumsum(1)
        union = total + (1 - hit).cumsum(1)
        jaccard = 1 - intersection.to(errors.dtype) / union.to(errors.dtype)
        jaccard[:, 1:] -= jaccard[:, :-1].clone()
        slopes[:, index].scatter_(1, order, jaccard)
    return slopes * valid
