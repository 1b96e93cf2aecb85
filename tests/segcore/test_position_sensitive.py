"""Position-sensitive operations against the same written slowly, one value at a time."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from segcore.errors import ShapeError
from segcore.models.detection.masks import paste_masks
from segcore.models.detection.position_sensitive import assemble, pool, tight_boxes, vote


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_boxes(count: int, side: float, seed: int) -> Tensor:
    """Boxes of which some reach beyond the image and some are a pixel small."""
    corner = torch.rand(count, 2, generator=generator(seed)) * side * 1.2 - 0.2 * side
    extent = torch.rand(count, 2, generator=generator(seed + 1)) * side * 0.6 + 0.5
    return torch.cat([corner, corner + extent], 1)


def slow_assemble(maps: Tensor, windows: Tensor, size: int) -> Tensor:
    grid = math.isqrt(maps.shape[1])
    out = torch.empty(len(windows), size, size)
    for index, (image, top, left) in enumerate(windows.tolist()):
        for y in range(size):
            for x in range(size):
                channel = (y * grid // size) * grid + x * grid // size
                row = min(max(top + y, 0), maps.shape[2] - 1)
                column = min(max(left + x, 0), maps.shape[3] - 1)
                out[index, y, x] = maps[image, channel, row, column]
    return out


@settings(max_examples=15, deadline=None)
@given(grid=st.integers(1, 4), size=st.integers(1, 9), seed=st.integers(0, 99))
def test_assembling_equals_its_slow_twin(grid: int, size: int, seed: int) -> None:
    maps = torch.randn(2, grid**2, 7, 6, generator=generator(seed))
    windows = torch.randint(-4, 7, (5, 3), generator=generator(seed))
    windows[:, 0] %= 2
    assert torch.equal(assemble(maps, windows, size=size), slow_assemble(maps, windows, size))


def test_assembling_takes_each_cell_from_its_own_map() -> None:
    maps = torch.arange(9.0).view(1, 9, 1, 1).expand(1, 9, 8, 8)
    out = assemble(maps, torch.tensor([[0, 1, 2]]), size=6)
    expected = torch.arange(9.0).view(3, 3).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(out[0], expected)


def slow_pool(maps: Tensor, rois: Tensor, grid: int, size: int, scale: float) -> Tensor:
    channels, (height, width) = maps.shape[1] // grid**2, maps.shape[2:]
    out = torch.zeros(len(rois), channels, size, size)

    def cut(low: float, high: float, index: int, limit: int) -> slice:
        start = round(low * scale)
        step = max(round(high * scale) - start, 1) / size
        first = math.floor(index * step + 1e-6) + start
        last = math.ceil((index + 1) * step - 1e-6) + start
        return slice(min(max(first, 0), limit), min(max(last, 0), limit))

    for index, (image, x0, y0, x1, y1) in enumerate(rois.tolist()):
        for y in range(size):
            for x in range(size):
                cell = (y * grid // size) * grid + x * grid // size
                rows, columns = cut(y0, y1, y, height), cut(x0, x1, x, width)
                for channel in range(channels):
                    values = maps[int(image), channel * grid**2 + cell, rows, columns]
                    out[index, channel, y, x] = values.mean() if values.numel() else 0
    return out


@settings(max_examples=15, deadline=None)
@given(grid=st.integers(1, 3), times=st.integers(1, 3), seed=st.integers(0, 99))
def test_pooling_equals_its_slow_twin(grid: int, times: int, seed: int) -> None:
    maps = torch.randn(2, 2 * grid**2, 9, 8, generator=generator(seed))
    rois = torch.cat([torch.tensor([[0.0], [1], [0], [1]]), some_boxes(4, 32, seed)], 1)
    size = grid * times
    fast = pool(maps, rois, grid=grid, size=size, scale=0.25)
    torch.testing.assert_close(fast, slow_pool(maps, rois, grid, size, 0.25))


def test_pooling_equals_torchvision_where_bins_are_cells() -> None:
    from torchvision.ops import ps_roi_pool

    maps = torch.randn(1, 3 * 49, 20, 17, generator=generator(3), requires_grad=True)
    # Theirs never reads the last row and column of a map.
    boxes = some_boxes(30, 250, 5)
    boxes = boxes[(boxes[:, 2:] < torch.tensor([256, 304])).all(1)]
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], 1)
    ours = pool(maps, rois, grid=7, size=7, scale=1 / 16)
    theirs = ps_roi_pool(maps, rois, 7, 1 / 16)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    (ours_grad,) = torch.autograd.grad(ours.square().sum(), maps)
    (theirs_grad,) = torch.autograd.grad(theirs.square().sum(), maps)
    torch.testing.assert_close(ours_grad, theirs_grad, atol=1e-5, rtol=1e-4)


def slow_paste(mask: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    x0, y0, x1, y1 = box.tolist()
    m, n = mask.shape
    out = torch.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            v, u = (y + 0.5 - y0) / (y1 - y0), (x + 0.5 - x0) / (x1 - x0)
            if not (0 <= v <= 1 and 0 <= u <= 1):
                continue
            v, u = min(max(v * m - 0.5, 0), m - 1), min(max(u * n - 0.5, 0), n - 1)
            top, left = min(int(v), m - 2), min(int(u), n - 2)
            for row in (top, top + 1):
                for column in (left, left + 1):
                    share = (1 - abs(v - row)) * (1 - abs(u - column))
                    out[y, x] += share * mask[row, column]
    return out


def test_voting_equals_its_slow_twin() -> None:
    masks, boxes = torch.rand(70, 4, 4, generator=generator(1)), some_boxes(70, 16, 2)
    weights = torch.rand(3, 70, generator=generator(4)) * (torch.arange(70) % 3 == 0)
    weights[2] = 0
    slow = torch.zeros(3, 16, 16)
    for kept in range(2):
        for index in range(70):
            share = weights[kept, index] / weights[kept].sum()
            slow[kept] += share * slow_paste(masks[index], boxes[index], (16, 16))
    torch.testing.assert_close(vote(masks, boxes, weights, (16, 16)), slow)


def test_candidates_that_agree_vote_for_themselves() -> None:
    masks = torch.rand(1, 5, 5, generator=generator(1)).expand(3, 5, 5)
    boxes = torch.tensor([[2.0, 3, 14, 12]]).expand(3, 4)
    voted = vote(masks, boxes, torch.tensor([[0.2, 0.9, 0.4]]), (16, 16))
    torch.testing.assert_close(voted, paste_masks(masks[:1], boxes[:1], (16, 16)))


def test_tight_boxes_surround_what_is_set() -> None:
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, 1, 2] = True
    boxes = torch.tensor([[10.0, 20, 18, 40], [0, 0, 8, 8]])
    assert tight_boxes(masks, boxes).tolist() == [[14, 25, 16, 30], [0, 0, 8, 8]]


def test_maps_that_make_no_grid_are_refused() -> None:
    with pytest.raises(ShapeError, match="8 maps"):
        assemble(torch.zeros(1, 8, 4, 4), torch.zeros(1, 3, dtype=torch.long), size=3)
    with pytest.raises(ShapeError, match="multiple"):
        pool(torch.zeros(1, 8, 4, 4), torch.zeros(1, 5), grid=3, size=3, scale=1.0)
