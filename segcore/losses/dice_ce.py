"""Cross-entropy plus soft Dice: smooth gradients early, overlap late.

Reference: Isensee et al. 2018 (nnU-Net), arXiv:1809.10486.
"""

from torch import Tensor

from segcore.losses.cross_entropy import cross_entropy
from segcore.losses.dice import dice
from segcore.losses.joint import JointLoss, Weights


def dice_ce(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    denominator: str = "sum",
    smooth: float = 1e-6,
    label_smoothing: float = 0.0,
) -> Tensor:
    """ce_weight * cross_entropy + dice_weight * dice.

    Args:
        class_weights: [K] weights of the cross-entropy; Dice weighs its classes equally.

    Shape:
        logits: [N, K, *] float, or [N, 1, *] for a foreground logit
        target: [N, *] integer
        returns: scalar; 0 where no pixel is labelled
    """
    if denominator == "sum" and label_smoothing == 0 and logits.shape[1] > 1:
        weights = Weights(dice_weight, ce_weight, smooth, class_weights)
        joint: Tensor = JointLoss.apply(logits, target, ignore_index, weights)
        return joint
    pixelwise = cross_entropy(
        logits,
        target,
        ignore_index=ignore_index,
        class_weights=class_weights,
        label_smoothing=label_smoothing,
    )
    overlap = dice(
        logits, target, ignore_index=ignore_index, denominator=denominator, smooth=smooth
    )
    return ce_weight * pixelwise + dice_weight * overlap
