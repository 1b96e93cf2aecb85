"""Tversky loss: Dice with false positives and false negatives weighed apart.

Reference: Salehi, Erdogmus & Gholipour 2017, arXiv:1706.05721.
"""

from torch import Tensor

from segcore.errors import OptionError
from segcore.losses.pixels import class_mean
from segcore.losses.regions import foreground, regions


def tversky(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1e-6,
    per_image: bool = False,
) -> Tensor:
    """Mean over the classes present of 1 - (TP + s) / (TP + alpha FP + beta FN + s).

    alpha = beta = 1/2 is Dice, alpha = beta = 1 is Jaccard.

    Args:
        class_weights: [K] weights of that mean; two (background, foreground) for one logit.
        alpha: weight of false positives, at least 0.
        beta: weight of false negatives, at least 0.
        smooth: s, above 0.
        per_image: sums over each image and a mean over (image, class) pairs, not over the batch.

    Shape:
        logits: [N, K, *] float, or [N, 1, *] for a foreground logit
        target: [N, *] integer
        returns: scalar in 0..1; 0 where no class is present

    Raises:
        OptionError: alpha or beta below 0.
    """
    if alpha < 0 or beta < 0:
        raise OptionError(f"alpha is {alpha} and beta {beta}: give numbers >= 0")
    area = regions(logits, target, ignore_index=ignore_index, per_image=per_image)
    false_positive = area.predicted - area.overlap
    false_negative = area.actual - area.overlap
    weighted = area.overlap + alpha * false_positive + beta * false_negative
    score = (area.overlap + smooth) / (weighted + smooth)
    return class_mean(1 - score, area.present, foreground(class_weights, area.first_class))
