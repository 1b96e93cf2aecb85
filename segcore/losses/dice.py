"""Soft Dice loss.

References: sum of p in the denominator, Drozdzal et al. 2016, arXiv:1608.04117; sum of p^2,
Milletari et al. 2016 (V-Net), arXiv:1606.04797.
"""

from torch import Tensor

from segcore.errors import OptionError
from segcore.losses.pixels import class_mean
from segcore.losses.regions import foreground, regions

DENOMINATORS = ("sum", "squared")


def dice(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    denominator: str = "sum",
    smooth: float = 1e-6,
    per_image: bool = False,
) -> Tensor:
    """Mean over the classes present in the target of 1 - (2 sum pg + s) / (sum p + sum g + s).

    Args:
        class_weights: [K] weights of that mean; two (background, foreground) for one logit.
        denominator: "sum" as above; "squared" has sum p^2 + sum g^2.
        smooth: s, above 0.
        per_image: sums over each image and a mean over (image, class) pairs, not over the batch.

    Shape:
        logits: [N, K, *] float, or [N, 1, *] for a foreground logit (Dice of the foreground)
        target: [N, *] integer
        returns: scalar in 0..1; 0 where no class is present

    Raises:
        OptionError: an unknown denominator.
    """
    if denominator not in DENOMINATORS:
        raise OptionError(f"denominator is {denominator!r}: give one of {', '.join(DENOMINATORS)}")
    area = regions(logits, target, ignore_index=ignore_index, per_image=per_image)
    predicted = area.predicted if denominator == "sum" else area.predicted_squares
    score = (2 * area.overlap + smooth) / (predicted + area.actual + smooth)
    return class_mean(1 - score, area.present, foreground(class_weights, area.first_class))
