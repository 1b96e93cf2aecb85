"""Focal loss: cross-entropy that fades on pixels already right.

Reference: Lin et al. 2017 (RetinaNet), arXiv:1708.02002.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from segcore.errors import OptionError
from segcore.losses.pixels import labelled, ratio


def focal(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Mean over labelled pixels of -a (1 - p[y])^gamma log p[y].

    With several classes a = alpha everywhere, so gamma = 0 is alpha times cross-entropy. With one
    logit a = alpha at foreground pixels and 1 - alpha at background ones (equation 5).

    Args:
        class_weights: [K] weights w; the mean is then sum(w[y] loss) / sum(w[y]).
        alpha: in 0..1.
        gamma: at least 0.

    Shape:
        logits: [N, K, *] float, or [N, 1, *] for a foreground logit
        target: [N, *] integer
        returns: scalar; 0 where no pixel is labelled

    Raises:
        OptionError: an option out of its range.
    """
    if not 0.0 <= alpha <= 1.0 or gamma < 0:
        raise OptionError(f"alpha is {alpha} and gamma {gamma}: give alpha in 0..1, gamma >= 0")
    pixels = labelled(logits, target, ignore_index)
    surprise = F.cross_entropy(pixels.logits, pixels.target, reduction="none")
    # 1 - p without cancellation; the floor keeps the slope of (1 - p)^gamma finite for gamma < 1.
    wrongness = (-torch.expm1(-surprise)).clamp_min(torch.finfo(surprise.dtype).tiny)
    balance: Tensor | float = alpha
    if pixels.binary:
        balance = torch.where(pixels.target == 1, alpha, 1 - alpha)
    weight = pixels.valid.to(surprise.dtype)
    if class_weights is not None:
        weight = weight * class_weights.to(surprise.dtype)[pixels.target]
    losses = balance * wrongness**gamma * surprise
    return ratio((losses * weight).sum(), weight.sum())
