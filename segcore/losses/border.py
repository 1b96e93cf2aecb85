"""U-Net's cross-entropy with weights that rise in the gaps between touching objects.

Reference: Ronneberger, Fischer & Brox 2015, arXiv:1505.04597, equation 2.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segcore.errors import OptionError, ShapeError
from segcore.losses.cross_entropy import pixel_weights
from segcore.losses.pixels import Pixels, labelled, ratio

_REACH = 6.0  # in sigmas; beyond, the weight is below 2e-8 of w0


def border_weighted_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    *,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    w0: float = 10.0,
    sigma: float = 5.0,
    background: int = 0,
) -> Tensor:
    """Mean over labelled pixels of -(w_c[y] + border weight) log p[y].

    The divisor is the number of labelled pixels, so w0 = 0 without class weights is cross_entropy.

    Args:
        weights: what `border_weight_map` gives for the batch's instances. Left out, the objects are
            the connected components of the classes other than background, found on the CPU.
        class_weights: [K] weights w_c; 1 by default.
        w0: height of the border weight, at least 0.
        sigma: its width in pixels, above 0.
        background: class id of the ground between the objects.

    Shape:
        logits: [N, K, H, W] float, or [N, 1, H, W] for a foreground logit
        target: [N, H, W] integer
        weights: [N, H, W] float
        returns: scalar; 0 where no pixel is labelled

    Raises:
        OptionError: w0 or sigma out of range.
        ShapeError: weights of another shape than target.
    """
    _check_options(w0, sigma)
    pixels = labelled(logits, target, ignore_index)
    if weights is None:
        weights = _weights_of_components(pixels, w0=w0, sigma=sigma, background=background)
    if weights.shape != target.shape:
        raise ShapeError(
            f"weights are {tuple(weights.shape)}, expected {tuple(target.shape)}: "
            "give border_weight_map of this target's instances"
        )
    losses = F.cross_entropy(pixels.logits, pixels.target, reduction="none")
    by_class = pixels.valid.to(losses.dtype)
    if class_weights is not None:
        by_class = pixel_weights(pixels, class_weights.to(losses.dtype))
    total = by_class + weights.to(losses) * pixels.valid
    return ratio((losses * total).sum(), pixels.valid.sum().to(losses.dtype))


def border_weight_map(
    instance_ids: NDArray[np.integer] | Tensor, *, w0: float = 10.0, sigma: float = 5.0
) -> NDArray[np.float32]:
    """w0 exp(-(d1 + d2)^2 / (2 sigma^2)) at background pixels, 0 within objects.

    d1 and d2 are the distances in pixels to the nearest and the second nearest object. Each
    object's distances are taken 6 sigma far around it, so the cost follows the objects' areas.

    Args:
        instance_ids: 0 is background, every other value an object.
        w0: height, at least 0.
        sigma: width in pixels, above 0.

    Shape:
        instance_ids: [H, W] integer
        returns: [H, W] float32 in 0..w0; 0 where there are fewer than two objects

    Raises:
        ShapeError: the ids are not [H, W].
        OptionError: w0 or sigma out of range.
    """
    from scipy.ndimage import distance_transform_edt, find_objects

    _check_options(w0, sigma)
    ids = instance_ids.cpu().numpy() if isinstance(instance_ids, Tensor) else instance_ids
    if ids.ndim != 2:
        raise ShapeError(f"instance_ids are {ids.shape}: give one map [H, W]")
    dense = np.unique(ids, return_inverse=True)[1].reshape(ids.shape) + 1
    dense[ids == 0] = 0
    margin = math.ceil(_REACH * sigma)
    nearest = np.full(ids.shape, np.inf)
    second = np.full(ids.shape, np.inf)
    for label, box in enumerate(find_objects(dense), start=1):
        if box is None:
            continue
        window = tuple(slice(max(side.start - margin, 0), side.stop + margin) for side in box)
        distance = distance_transform_edt(dense[window] != label)
        second[window] = np.minimum(second[window], np.maximum(nearest[window], distance))
        nearest[window] = np.minimum(nearest[window], distance)
    weights = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return np.where(ids == 0, weights, 0.0).astype(np.float32)


def _weights_of_components(pixels: Pixels, *, w0: float, sigma: float, background: int) -> Tensor:
    from scipy.ndimage import label

    objects = ((pixels.target != background) & pixels.valid).cpu().numpy()
    maps = [border_weight_map(label(mask)[0], w0=w0, sigma=sigma) for mask in objects]
    weights = np.stack(maps) if maps else np.zeros(objects.shape, dtype=np.float32)
    return torch.from_numpy(weights).to(pixels.target.device)


def _check_options(w0: float, sigma: float) -> None:
    if w0 < 0 or sigma <= 0:
        raise OptionError(f"w0 is {w0} and sigma {sigma}: give w0 >= 0 and sigma > 0")
