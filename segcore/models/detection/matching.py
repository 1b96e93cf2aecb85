"""Which object an anchor or proposal stands for, and which of them a loss looks at; whole batches.

Reference: Ren et al. 2015, arXiv:1506.01497, section 3.1.2.
"""

import torch
from torch import Tensor

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


def match(
    iou: Tensor, present: Tensor, *, high: float, low: float, rescue: bool = False
) -> tuple[Tensor, Tensor]:
    """Assign candidates to the objects that they overlap most.

    Args:
        iou: [B, G, A] of G objects and A candidates in each image; changed in place.
        present: bool [B, G], which objects are there.
        high: a candidate is positive from this overlap on.
        low: and negative below this one; between both it is ignored.
        rescue: the candidates that overlap an object most are positive whatever the overlap is.

    Returns:
        index of the object, int64 [B, A] (0 where there is none), and POSITIVE, NEGATIVE or
        IGNORED, int8 [B, A].
    """
    iou.masked_fill_(~present[..., None], -1)
    best, index = iou.max(dim=1)
    kind = torch.full_like(index, IGNORED, dtype=torch.int8)
    kind[best < low] = NEGATIVE
    kind[best >= high] = POSITIVE
    if rescue:
        # Ties count, as in the paper's code; an object that nothing touches rescues nothing.
        most = iou.max(dim=2, keepdim=True).values
        most = torch.where(most > 0, most, torch.inf)
        kind[(iou == most).any(dim=1)] = POSITIVE
    return index, kind


def sample(kind: Tensor, size: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Draw candidates at random in every image.

    Args:
        kind: [B, A] as `match` returns it.
        size: how many an image; fewer where there are not enough.
        positive_fraction: largest share of positives; negatives fill up.

    Returns:
        drawn positives and drawn negatives, bool [B, A] each.
    """
    key = torch.rand(kind.shape, device=kind.device)
    positives = _draw(key, kind == POSITIVE, torch.tensor(int(size * positive_fraction)))
    negatives = _draw(key, kind == NEGATIVE, size - positives.sum(dim=1))
    return positives, negatives


def _draw(key: Tensor, allowed: Tensor, count: Tensor) -> Tensor:
    """The `count` ([] or [B]) allowed candidates of largest key in each row."""
    most = min(int(count.max()), key.shape[1])
    drawn = torch.zeros_like(allowed)
    if most == 0:
        return drawn
    index = key.masked_fill(~allowed, -1).topk(most, dim=1).indices
    within = torch.arange(most, device=key.device) < count.to(key.device).reshape(-1, 1)
    drawn.scatter_(1, index, within.expand_as(index))
    return drawn & allowed
