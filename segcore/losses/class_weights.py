"""Class weights from the pixel counts of a training split.

References: median frequency, Eigen & Fergus 2015, arXiv:1411.4734 (used by SegNet); inverse log,
Paszke et al. 2016 (ENet), arXiv:1606.02147.
"""

import math
import statistics
from typing import TypedDict

import torch
from torch import Tensor

from segcore.errors import OptionError

KINDS = ("none", "median_frequency", "inverse_log", "sqrt_inverse_log")


class PixelCounts(TypedDict):
    """Pixels of a training split, counted once when its shards are written.

    Keys:
        pixels: of each class.
        image_pixels: for each class, all pixels (void included) of the images in which it occurs.
        total: labelled pixels.
    """

    pixels: list[int]
    image_pixels: list[int]
    total: int


def class_weights_from_counts(kind: str, counts: PixelCounts) -> Tensor | None:
    """Weights [K] of the named kind; None for "none".

    The square root of the published weights (1.2 to 7.1) is for losses that weigh the classes
    themselves, as Dice does: with the whole of them rare classes are drawn too large.

    Raises:
        OptionError: an unknown kind, or counts without a labelled pixel.
    """
    if kind not in KINDS:
        raise OptionError(f"class_weights is {kind!r}: give one of {', '.join(KINDS)}")
    if kind == "none":
        return None
    if counts["total"] <= 0:
        raise OptionError(
            f"class_weights is {kind!r}, but the training split has no labelled pixel: "
            "use 'none' or check ignore_index"
        )
    if kind == "median_frequency":
        return median_frequency(counts)
    return inverse_log(counts) if kind == "inverse_log" else inverse_log(counts).sqrt()


def median_frequency(counts: PixelCounts) -> Tensor:
    """w_c = median(f) / f_c, f_c = pixels of c / all pixels of the images that contain c.

    A class without pixels gets weight 0 and has no part in the median.

    Shape:
        returns: [K] float32
    """
    frequencies = [
        pixels / max(around, 1)
        for pixels, around in zip(counts["pixels"], counts["image_pixels"], strict=True)
    ]
    median = statistics.median(f for f in frequencies if f > 0)
    return torch.tensor([median / f if f > 0 else 0.0 for f in frequencies])


def inverse_log(counts: PixelCounts, *, offset: float = 1.02) -> Tensor:
    """w_c = 1 / ln(offset + p_c), p_c = share of c in the labelled pixels.

    Weights lie in 1.42 (p = 1) .. 50.5 (p = 0) at the published offset.

    Shape:
        returns: [K] float32
    """
    total = counts["total"]
    return torch.tensor([1 / math.log(offset + pixels / total) for pixels in counts["pixels"]])
