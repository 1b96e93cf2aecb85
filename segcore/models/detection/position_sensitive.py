"""Position-sensitive maps: assembling, pooling by RoI; masks that candidates vote for.

All over tensors, without a loop over RoIs; a chunk at a time where the whole would not fit.

References: Dai et al. 2016 (InstanceFCN), arXiv:1603.08678; Li et al. 2017 (FCIS),
arXiv:1611.07709; Dai et al. 2016 (MNC), arXiv:1512.04412.
"""

import math

import torch
from torch import Tensor

from segcore.errors import ShapeError
from segcore.models.detection.masks import paste_masks

CHUNK = 64


def cells(size: int, grid: int, device: torch.device | None = None) -> Tensor:
    """Which of `grid` cells each of `size` places of a window lies in.

    Shape:
        returns: [size] int64 in 0..grid-1
    """
    return torch.arange(size, device=device) * grid // size


def assemble(maps: Tensor, windows: Tensor, *, size: int) -> Tensor:
    """Copy each cell of a window from the map of that cell (InstanceFCN, Fig. 2).

    Places beyond the maps read the nearest place in them.

    Args:
        maps: scores relative to the cells of a k x k grid, row by row.
        windows: (image, top, left) in map coordinates; may reach beyond the maps.
        size: side m of a window, in map cells.

    Shape:
        maps: [N, k * k, H, W]
        windows: [R, 3] int64
        returns: [R, size, size]

    Raises:
        ShapeError: the number of maps is not a square.
    """
    grid = _grid(maps.shape[1])
    height, width = maps.shape[2:]
    places = torch.arange(size, device=maps.device)
    rows = (windows[:, 1, None] + places).clamp(0, height - 1)
    columns = (windows[:, 2, None] + places).clamp(0, width - 1)
    cell = cells(size, grid, maps.device)
    channel = cell[:, None] * grid + cell
    return maps[windows[:, 0, None, None], channel, rows[:, :, None], columns[:, None, :]]


def pool(maps: Tensor, rois: Tensor, *, grid: int, size: int, scale: float) -> Tensor:
    """Mean of each of size x size bins of a RoI, from the map of the bin's cell of the grid.

    RoIs are rounded to whole map cells as torchvision's ps_roi_pool does, which it equals where
    size == grid. Sums come from an integral image, so the cost does not follow the RoIs' areas.

    Args:
        maps: each of the channels as grid x grid maps in a row.
        rois: (image, x0, y0, x1, y1) in pixels of the image.
        grid: side k of the grid.
        size: bins on a side.
        scale: map cells by pixel.

    Shape:
        maps: [N, channels * grid * grid, H, W]
        rois: [R, 5]
        returns: [R, channels, size, size]

    Raises:
        ShapeError: the number of maps does not divide by grid * grid.
    """
    images, count, height, width = maps.shape
    if count % grid**2:
        raise ShapeError(f"{count} maps are not a multiple of {grid} x {grid}: give whole grids")
    channels = count // grid**2
    # Differences of sums lose digits, so the sums are kept in double precision.
    integral = maps.new_zeros(images, count, height + 1, width + 1, dtype=torch.float64)
    integral[:, :, 1:, 1:] = maps.double().cumsum(2).cumsum(3)
    # Channels last, so that the sums of one place are read together.
    integral = integral.view(images, channels, grid * grid, -1).permute(0, 2, 3, 1).contiguous()
    top, bottom = _bins(rois[:, 2], rois[:, 4], size, scale, height)
    left, right = _bins(rois[:, 1], rois[:, 3], size, scale, width)
    cell = cells(size, grid, maps.device)
    batch = rois[:, 0].long()[:, None, None]
    channel = (cell[:, None] * grid + cell)[None]

    def corner(rows: Tensor, columns: Tensor) -> Tensor:
        return integral[batch, channel, rows[:, :, None] * (width + 1) + columns[:, None, :]]

    total = corner(bottom, right) - corner(top, right) - corner(bottom, left) + corner(top, left)
    area = (bottom - top)[:, :, None] * (right - left)[:, None, :]
    mean = total / area.clamp(min=1)[..., None]
    return mean.permute(0, 3, 1, 2).to(maps.dtype)


def vote(masks: Tensor, boxes: Tensor, weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks that several candidates agree on: the weighted mean of theirs, in the image.

    Args:
        masks: of the candidates, 0..1 within their boxes.
        boxes: of the candidates, xyxy in pixels.
        weights: of each candidate in each voted mask, not negative; 0 where it has no say.
        size: (H, W) of the image.

    Shape:
        masks: [R, m, m]
        boxes: [R, 4]
        weights: [K, R]
        returns: [K, H, W]
    """
    weights = weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    voted = masks.new_zeros(len(weights), size[0] * size[1])
    with torch.autocast(masks.device.type, enabled=False):
        for start in range(0, len(masks), CHUNK):
            part = slice(start, start + CHUNK)
            voted += weights[:, part] @ paste_masks(masks[part], boxes[part], size).flatten(1)
    return voted.view(-1, *size)


def mask_boxes(masks: Tensor) -> Tensor:
    """Boxes around what is set, in pixels; an empty mask's is all of it.

    Shape:
        masks: bool [R, H, W]
        returns: float32 [R, 4] xyxy
    """
    height, width = masks.shape[1:]
    return tight_boxes(masks, masks.new_tensor([[0, 0, width, height]], dtype=torch.float32))


def tight_boxes(masks: Tensor, boxes: Tensor) -> Tensor:
    """Boxes around what is set within masks that are stretched over `boxes`.

    Args:
        masks: bool; an empty one keeps its whole box.
        boxes: xyxy, one a mask or one for all.

    Shape:
        masks: [R, m, n]
        boxes: [R, 4] or [1, 4]
        returns: [R, 4]
    """
    masks = masks | ~masks.flatten(1).any(1)[:, None, None]
    sides = []
    for axis, low, high in ((1, 0, 2), (2, 1, 3)):
        line = masks.any(axis)
        places = torch.arange(line.shape[1], device=line.device)
        first = torch.where(line, places, line.shape[1]).amin(1)
        last = torch.where(line, places + 1, 0).amax(1)
        step = (boxes[:, high] - boxes[:, low]) / line.shape[1]
        sides.append((boxes[:, low] + first * step, boxes[:, low] + last * step))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], 1)


def _grid(maps: int) -> int:
    grid = math.isqrt(maps)
    if grid**2 != maps:
        raise ShapeError(f"{maps} maps are no square grid: give k * k of them")
    return grid


def _bins(low: Tensor, high: Tensor, size: int, scale: float, limit: int) -> tuple[Tensor, Tensor]:
    """First and one behind the last map cell of each bin, within the map.

    Shape:
        low, high: [R] pixels
        returns: two of [R, size] int64
    """
    start = (low.float() * scale).round()
    extent = ((high.float() * scale).round() - start).clamp(min=1)
    step = (extent / size)[:, None]
    index = torch.arange(size, device=low.device)
    first = ((index * step).floor() + start[:, None]).clamp(0, limit)
    last = (((index + 1) * step).ceil() + start[:, None]).clamp(0, limit)
    return first.long(), last.long()
