"""Pixel cross-entropy: class weights, label smoothing, hard-pixel mining.

References: OHEM, Shrivastava et al. 2016, arXiv:1604.03540; label smoothing, Szegedy et al. 2016,
arXiv:1512.00567.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from segcore.errors import OptionError
from segcore.losses.pixels import Pixels, labelled, ratio

NORMALIZATIONS = ("weights", "pixels", "none")
_SKIP = -100  # what F.cross_entropy leaves out by default


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    ohem: float | None = None,
    normalize: str = "weights",
) -> Tensor:
    """Mean over labelled pixels of -w[y] log p[y].

    Args:
        class_weights: [K] weights w; two of them (background, foreground) for one logit.
        label_smoothing: in 0..1, share of the target that is spread over all classes.
        ohem: in 0..1, the share of the labelled pixels that is kept, hardest first; None keeps
            all. Rounded up to a whole pixel.
        normalize: the divisor. "weights" is the sum of w[y] over the pixels kept (torch's "mean");
            "pixels" their number (Caffe's VALID, the SegNet recipe); "none" is 1 (FCN's recipe).

    Shape:
        logits: [N, K, *] float, or [N, 1, *] for a foreground logit (binary cross-entropy)
        target: [N, *] integer
        returns: scalar float32 (float64 for float64 logits); 0 where no pixel is labelled

    Raises:
        OptionError: an option is out of its range.
    """
    _check_options(label_smoothing, ohem, normalize)
    pixels = labelled(logits, target, ignore_index)
    weights = None if class_weights is None else class_weights.to(pixels.logits.dtype)
    losses = F.cross_entropy(
        pixels.logits,
        pixels.target.masked_fill(~pixels.valid, _SKIP),
        weight=weights,
        reduction="sum" if ohem is None else "none",
        label_smoothing=label_smoothing,
    )
    if normalize == "weights" and weights is not None:
        divisors = pixel_weights(pixels, weights)
    else:
        divisors = pixels.valid.to(pixels.logits.dtype)
    if ohem is not None:
        kept = hardest(losses.detach(), pixels.valid, ohem)
        losses, divisors = (losses * kept).sum(), divisors * kept
    return losses if normalize == "none" else ratio(losses, divisors.sum())


def pixel_weights(pixels: Pixels, class_weights: Tensor) -> Tensor:
    """The weight of each pixel's class, 0 at ignored pixels: [N, *]."""
    return class_weights[pixels.target] * pixels.valid


def hardest(losses: Tensor, valid: Tensor, fraction: float) -> Tensor:
    """Mark the ceil(fraction * labelled) pixels of highest loss, without asking the device.

    Shape:
        losses: [N, *] float
        valid, returns: [N, *] bool
    """
    order = losses.masked_fill(~valid, -1.0).flatten().argsort(descending=True, stable=True)
    number = torch.ceil(valid.sum() * fraction)
    kept = torch.arange(order.numel(), device=order.device) < number
    return torch.empty_like(kept).scatter_(0, order, kept).view_as(losses)


def _check_options(label_smoothing: float, ohem: float | None, normalize: str) -> None:
    if not 0.0 <= label_smoothing <= 1.0:
        raise OptionError(f"label_smoothing is {label_smoothing}: give a number in 0..1")
    if ohem is not None and not 0.0 < ohem <= 1.0:
        raise OptionError(f"ohem is {ohem}: give the share of pixels to keep, above 0 up to 1")
    if normalize not in NORMALIZATIONS:
        raise OptionError(f"normalize is {normalize!r}: give one of {', '.join(NORMALIZATIONS)}")
