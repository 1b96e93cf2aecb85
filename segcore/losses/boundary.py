"""Boundary loss: probability mass weighed by its signed distance to the labelled boundary.

Reference: Kervadec et al. 2019, arXiv:1812.07032.
"""

import numpy as np
import torch
from torch import Tensor

from segcore.errors import ShapeError
from segcore.losses.pixels import class_mean, labelled, one_hot
from segcore.losses.regions import foreground


def boundary(
    logits: Tensor,
    target: Tensor,
    distances: Tensor | None = None,
    *,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Mean over labelled pixels and the classes present of phi p, phi the signed distance.

    It falls below 0 as the prediction fills the class; combine it with a region loss (the paper's
    recipe). Without `distances` the maps are made here by distance transforms on the CPU, about
    10 ms for each image and class at 360 x 480: make them beforehand where that matters.

    Args:
        distances: what `signed_distances` gives for this target.
        class_weights: [K] weights of the mean over classes.

    Shape:
        logits: [N, K, *] float, or [N, 1, *] for a foreground logit (its boundary alone)
        target: [N, *] integer
        distances: [N, K, *] float ([N, 2, *] for one logit)
        returns: scalar, pixels; 0 where no class is present

    Raises:
        ShapeError: distances of another shape.
    """
    pixels = labelled(logits, target, ignore_index)
    truth = one_hot(pixels)
    if distances is None:
        distances = signed_distances(truth, pixels.valid)
    if distances.shape != truth.shape:
        raise ShapeError(
            f"distances are {tuple(distances.shape)}, expected {tuple(truth.shape)}: "
            "give signed_distances of this target"
        )
    first = pixels.first_class
    weighed = torch.softmax(pixels.logits, dim=1) * pixels.valid.unsqueeze(1)
    weighed = (weighed * distances.to(weighed))[:, first:]
    number = pixels.valid.sum().clamp_min(1)
    losses = weighed.transpose(0, 1).flatten(1).sum(1, keepdim=True).T / number
    present = truth[:, first:].transpose(0, 1).flatten(1).any(1).unsqueeze(0)
    return class_mean(losses, present, foreground(class_weights, first))


def signed_distances(truth: Tensor, valid: Tensor) -> Tensor:
    """Distance of each pixel to each class's boundary, in pixels, negative within the class.

    Outside it is the distance to the nearest pixel of the class; inside, 1 less than the distance
    to the nearest labelled pixel of another class, negated, so that boundary pixels have 0 (the
    authors' one_hot2dist). Unlabelled pixels are no boundary. A class that an image lacks, or that
    fills it, has no boundary: 0 everywhere.

    Shape:
        truth: [N, K, *] bool, at most one class a pixel
        valid: [N, *] bool
        returns: [N, K, *] float32 on the device of truth
    """
    from scipy.ndimage import distance_transform_edt

    inside = truth.cpu().numpy()
    labelled_pixels = valid.cpu().numpy()
    distances = np.zeros(inside.shape, dtype=np.float32)
    for image, label in np.argwhere(inside.any(axis=tuple(range(2, inside.ndim)))):
        region = inside[image, label]
        other = labelled_pixels[image] & ~region
        if other.any():
            within = np.where(region, distance_transform_edt(~other) - 1, 0.0)
            distances[image, label] = distance_transform_edt(~region) - within
    return torch.from_numpy(distances).to(truth.device)
