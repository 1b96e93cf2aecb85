"""Soft Jaccard (IoU) loss.

Reference: Rahman & Wang 2016, "Optimizing intersection-over-union in deep neural networks for
image segmentation", doi:10.1007/978-3-319-50835-1_22.
"""

from torch import Tensor

from segcore.losses.pixels import class_mean
from segcore.losses.regions import foreground, regions


def jaccard(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    smooth: float = 1e-6,
    per_image: bool = False,
) -> Tensor:
    """Mean over the classes present in the target of 1 - (I + s) / (U + s).

    I = sum pg, U = sum p + sum g - I.

    Args:
        class_weights: [K] weights of that mean; two (background, foreground) for one logit.
        smooth: s, above 0.
        per_image: sums over each image and a mean over (image, class) pairs, not over the batch.

    Shape:
        logits: [N, K, *] float, or [N, 1, *] for a foreground logit (its IoU alone)
        target: [N, *] integer
        returns: scalar in 0..1; 0 where no class is present
    """
    area = regions(logits, target, ignore_index=ignore_index, per_image=per_image)
    union = area.predicted + area.actual - area.overlap
    score = (area.overlap + smooth) / (union + smooth)
    return class_mean(1 - score, area.present, foreground(class_weights, area.first_class))
