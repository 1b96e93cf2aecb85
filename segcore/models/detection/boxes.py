"""Boxes as [x1, y1, x2, y2] in pixels: areas, overlaps, the regression code, padding to a batch.

References: Girshick 2014, arXiv:1311.2524 (the code); Ren et al. 2015, arXiv:1506.01497.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# A box grows at most by 1000 / 16 in one step, or exp overflows early in training.
MAX_LOG_SCALE = math.log(1000 / 16)


def box_area(boxes: Tensor) -> Tensor:
    """Area of boxes [..., 4] -> [...], 0 for an inverted box."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every pair, 0 where both are empty.

    Shape:
        a: [..., G, 4]
        b: [..., A, 4], leading dimensions as a's or broadcastable
        returns: [..., G, A]
    """
    a, b = a.float(), b.float()

    def shared(axis: int) -> Tensor:
        upper = torch.minimum(a[..., :, None, axis + 2], b[..., None, :, axis + 2])
        lower = torch.maximum(a[..., :, None, axis], b[..., None, :, axis])
        return upper.sub_(lower).clamp_(min=0)

    # In place where it can be: with 300 objects and 16,000 anchors each copy is tens of MB.
    inter = shared(0).mul_(shared(1))
    union = (box_area(a)[..., :, None] + box_area(b)[..., None, :]).sub_(inter)
    return inter.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def centres_and_sizes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centres [..., 2] and sides [..., 2] of boxes [..., 4]."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sides, sides


def encode(boxes: Tensor, reference: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """Regression targets that turn `reference` into `boxes`.

    Args:
        boxes: [..., 4]
        reference: anchors or proposals [..., 4] of positive sides.
        weights: factors of (dx, dy, dw, dh).

    Returns:
        [..., 4]: shift in units of the reference's sides, and log of the sides' ratio.
    """
    centre, sides = centres_and_sizes(boxes)
    at, unit = centres_and_sizes(reference)
    factors = boxes.new_tensor(weights)
    return torch.cat([(centre - at) / unit, torch.log(sides / unit)], dim=-1) * factors


def decode(deltas: Tensor, reference: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """Inverse of `encode`; sides grow by 62.5 at most.

    Shape:
        deltas: [..., 4], in float32 whatever autocast says
        reference: broadcastable to it
        returns: [..., 4]
    """
    deltas = deltas.float() / deltas.new_tensor(weights, dtype=torch.float32)
    at, unit = centres_and_sizes(reference)
    centre = deltas[..., :2] * unit + at
    half = 0.5 * deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp() * unit
    return torch.cat([centre - half, centre + half], dim=-1)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [..., 4] inside an image of (height, width)."""
    height, width = size
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def clip_rois(rois: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """RoIs [R, 5] inside their own images, each of (height, width)."""
    limits = rois.new_tensor([[width, height, width, height] for height, width in sizes])
    inside = rois[:, 1:].clamp(min=0).minimum(limits[rois[:, 0].detach().long()])
    return torch.cat([rois[:, :1], inside], dim=1)


def clip_gradient(x: Tensor, limit: float) -> Tensor:
    """x itself, to whose elements no gradient beyond -limit..limit passes."""
    if not x.requires_grad:
        return x
    x = x.view_as(x)
    x.register_hook(lambda gradient: gradient.clamp(-limit, limit))  # type: ignore[no-untyped-call]
    return x


def has_sides(boxes: Tensor, least: float) -> Tensor:
    """Whether both sides of boxes [..., 4] are at least `least` pixels."""
    return (boxes[..., 2:] - boxes[..., :2] >= least).all(dim=-1)


def pad_boxes(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes of several images as one tensor.

    Args:
        boxes: one [n, 4] an image, n may be 0 and may differ.

    Returns:
        [B, G, 4] with G the largest n, at least 1, and which of them are there: bool [B, G].
    """
    counts = [len(b) for b in boxes]
    padded = boxes[0].new_zeros(len(boxes), max(1, *counts), 4, dtype=torch.float32)
    for image, own in enumerate(boxes):
        padded[image, : len(own)] = own
    here = torch.arange(padded.shape[1], device=padded.device)
    return padded, here < torch.tensor(counts, device=padded.device)[:, None]


def to_rois(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes of each image [n, 4] as RoIs [sum n, 5]: index of the image, then the box."""
    index = [torch.full_like(b[:, :1], i) for i, b in enumerate(boxes)]
    return torch.cat([torch.cat(index), torch.cat(list(boxes))], dim=1)
