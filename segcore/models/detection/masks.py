"""Masks between an object's box and the image: training targets out of it, predictions into it.

Both are written so that no loop runs over objects: targets are gathered at sample points, and
pasting is two small matrix products an object, because bilinear resizing is separable.

Reference: He et al. 2017, arXiv:1703.06870, section 3.1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLES = 2  # points a bin and axis
MAX_PASTED = 2**24  # pixels of one chunk: intermediates of 64 MB


def crop_masks(
    masks: Tensor, index: Tensor, boxes: Tensor, size: int, *, aligned: bool = True
) -> Tensor:
    """Share of the object in each cell of a size x size grid over a box.

    Every cell is the mean of 2x2 bilinear samples, as RoIAlign reads features.

    Args:
        masks: uint8 [n, H, W] of 0 and 1.
        index: int64 [R], which mask each box reads.
        boxes: float32 [R, 4] in pixels.
        size: side of the result.
        aligned: pixel centres at half integers (False: at integers, as torchvision's models).

    Returns:
        float32 [R, size, size] in 0..1
    """
    height, width = masks.shape[1:]
    steps = (torch.arange(size * SAMPLES, device=boxes.device) + 0.5) / (size * SAMPLES)
    half = 0.5 if aligned else 0.0
    x = boxes[:, :1] + steps * (boxes[:, 2:3] - boxes[:, :1]) - half
    y = boxes[:, 1:2] + steps * (boxes[:, 3:] - boxes[:, 1:2]) - half
    left, right, to_right = _neighbours(x, width)
    upper, lower, to_lower = _neighbours(y, height)

    def read(rows: Tensor, columns: Tensor) -> Tensor:
        return masks[index[:, None, None], rows[:, :, None], columns[:, None, :]].float()

    top = torch.lerp(read(upper, left), read(upper, right), to_right[:, None, :])
    bottom = torch.lerp(read(lower, left), read(lower, right), to_right[:, None, :])
    return F.avg_pool2d(torch.lerp(top, bottom, to_lower[:, :, None]), SAMPLES)


def _neighbours(at: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels on both sides of positions, clamped to the image, and the weight of the second."""
    at = at.clamp(0, length - 1)
    first = at.long()
    return first, (first + 1).clamp(max=length - 1), at - first


def paste_masks(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], *, aligned: bool = True
) -> Tensor:
    """Resize each mask to its box, bilinearly, in an otherwise empty image.

    Args:
        masks: probabilities [R, M, M].
        boxes: [R, 4] in pixels of the image.
        size: (height, width) of the image.
        aligned: a pixel belongs to a box that holds its centre (False: boxes rounded to whole
            pixels and masks padded by 1, as torchvision's models).

    Returns:
        float32 [R, height, width]
    """
    masks, boxes = masks.detach().float(), boxes.detach().float()
    if aligned:
        rows = _axis(boxes[:, 1], boxes[:, 3], size[0], masks.shape[1])
        columns = _axis(boxes[:, 0], boxes[:, 2], size[1], masks.shape[2])
    else:
        first, last = _whole_pixels(boxes, masks.shape[1])
        masks = F.pad(masks, (1, 1, 1, 1))
        rows = _axis(first[:, 1], last[:, 1], size[0], masks.shape[1])
        columns = _axis(first[:, 0], last[:, 0], size[1], masks.shape[2])
    pasted = masks.new_empty(len(masks), *size)
    chunk = max(1, MAX_PASTED // (size[0] * size[1]))
    with torch.autocast(masks.device.type, enabled=False):
        for start in range(0, len(masks), chunk):
            part = slice(start, start + chunk)
            torch.matmul(rows[part] @ masks[part], columns[part].mT, out=pasted[part])
    return pasted


def _axis(first: Tensor, last: Tensor, length: int, cells: int) -> Tensor:
    """Weights [R, length, cells] of the cells of [first, last) at every pixel centre of an axis."""
    centre = torch.arange(length, device=first.device) + 0.5
    side = (last - first).clamp(min=torch.finfo(first.dtype).eps)
    at = ((centre - first[:, None]) / side[:, None]) * cells - 0.5
    inside = (centre > first[:, None]) & (centre < last[:, None])
    at = at.clamp(0, cells - 1)[..., None]
    weights = 1 - (at - torch.arange(cells, device=first.device)).abs()
    return weights.clamp_(min=0) * inside[..., None]


def _whole_pixels(boxes: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Corners of the boxes grown for a border of one cell, in whole pixels, the last one within."""
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((cells + 2) / cells)
    first, last = (centre - half).trunc(), (centre + half).trunc()
    return first, (last + 1).maximum(first + 1)
