"""From probabilities of interiors and borders to objects, and the maps these are learned from."""

import heapq

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segcore.errors import OptionError, ShapeError
from segcore.inference.watershed import flood, keep_larger, separate_objects
from segcore.models import create_model
from segcore.models.detection.pixel_targets import (
    BACKGROUND,
    BORDER,
    IGNORE,
    INTERIOR,
    crowd_map,
    pixel_targets,
)

SIDE = 9


def lowest_passes(
    height: NDArray[np.float64], seeds: NDArray[np.bool_], mask: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Height of the lowest way from the seeds to every pixel, by Dijkstra, one pixel at a time."""
    passes = np.full(height.shape, np.inf)
    queue = [(height[at], *at) for at in zip(*np.nonzero(seeds & mask), strict=True)]
    heapq.heapify(queue)
    while queue:
        level, y, x = heapq.heappop(queue)
        if level >= passes[y, x]:
            continue
        passes[y, x] = level
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= v < height.shape[0] and 0 <= u < height.shape[1] and mask[v, u]:
                heapq.heappush(queue, (max(level, height[v, u]), v, u))
    return passes


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 6))
def test_every_pixel_goes_to_a_marker_over_the_lowest_pass(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    height = rng.random((SIDE, SIDE))
    mask = rng.random((SIDE, SIDE)) < 0.8
    markers = np.zeros((SIDE, SIDE), dtype=np.int32)
    for name in range(1, count + 1):
        markers[tuple(rng.integers(0, SIDE, 2))] = name
    result = flood(height, markers, mask)
    names = np.unique(markers[mask & (markers > 0)])
    if len(names) == 0:
        assert not result.any()
        return
    passes = np.stack([lowest_passes(height, markers == name, mask) for name in names])
    reached = np.isfinite(passes.min(0))
    assert ((result > 0) == reached).all()
    assert (result[mask & (markers > 0)] == markers[mask & (markers > 0)]).all()
    own = np.take_along_axis(passes, np.searchsorted(names, result)[None] % len(names), 0)[0]
    assert (own[reached] == passes.min(0)[reached]).all()


def touching_discs() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Two discs that share a border, as probabilities, and their true ids."""
    rows, columns = np.mgrid[:24, :40]
    ids = np.zeros((24, 40), dtype=np.int64)
    ids[(rows - 12) ** 2 + (columns - 12) ** 2 <= 64] = 1
    ids[((rows - 12) ** 2 + (columns - 27) ** 2 <= 64) & (ids == 0)] = 2
    masks = torch.from_numpy(np.stack([ids == 1, ids == 2]).astype(np.uint8))
    target = {"masks": masks, "labels": torch.tensor([1, 1]), "semantic": torch.zeros(24, 40)}
    kinds = pixel_targets(target, (24, 40), border=2.0).kinds
    return (kinds == INTERIOR) * np.float32(0.9), (kinds == BORDER) * np.float32(0.9), ids


def test_touching_objects_come_apart_where_they_touch() -> None:
    interior, border, ids = touching_discs()
    found = separate_objects(interior, border)
    assert found.max() == 2
    for name in (1, 2):
        own = found == found[12, 12 if name == 1 else 27]
        overlap = (own & (ids == name)).sum() / (own | (ids == name)).sum()
        assert overlap > 0.95


def test_an_object_without_interior_is_an_object() -> None:
    interior, border = np.zeros((2, 12, 12), dtype=np.float32)
    border[2:4, 2:4] = 0.8
    border[8, 8] = 0.8
    assert separate_objects(interior, border).max() == 2
    assert separate_objects(interior, border, min_area=2).max() == 1


def test_small_objects_are_dropped_and_the_rest_renumbered() -> None:
    objects = np.array([[5, 5, 0], [7, 9, 9], [9, 0, 0]], dtype=np.int32)
    assert keep_larger(objects, 2).tolist() == [[1, 1, 0], [0, 2, 2], [2, 0, 0]]


def test_wrong_maps_and_thresholds_are_refused() -> None:
    plane = np.zeros((4, 4), dtype=np.float32)
    with pytest.raises(ShapeError, match="three maps"):
        flood(plane, np.zeros((4, 5), dtype=np.int32), plane > 0)
    with pytest.raises(ShapeError, match="give two"):
        separate_objects(plane, plane[:2])
    with pytest.raises(OptionError, match="marker_threshold is 2"):
        separate_objects(plane, plane, marker_threshold=2)
    with pytest.raises(OptionError, match="min_area is -1"):
        separate_objects(plane, plane, min_area=-1)


def test_borders_leave_even_a_pixel_its_interior_and_crowds_teach_nothing() -> None:
    masks = torch.zeros(4, 16, 16, dtype=torch.uint8)
    masks[0, 2:9, 2:9] = 1
    masks[1, 12, 12] = 1
    masks[2, 0:3, 10:16] = 1
    masks[3, 4, 4] = 1  # lies on the first, which is larger
    target = {
        "masks": masks,
        "labels": torch.tensor([1, 2, 1, 2]),
        "iscrowd": torch.tensor([0, 0, 1, 0]),
    }
    kept = [0, 1, 3]
    trained = {"masks": masks[kept], "labels": target["labels"][kept]}
    maps = pixel_targets({**trained, "semantic": crowd_map(target)}, (16, 20), border=2.0)
    assert maps.kinds.shape == maps.things.shape == maps.ids.shape == (16, 20)
    assert maps.kinds[12, 12] == maps.kinds[4, 4] == INTERIOR
    assert maps.kinds[2, 5] == maps.kinds[8, 8] == BORDER
    assert maps.kinds[6, 6] == INTERIOR
    assert (maps.kinds[0:3, 10:16] == IGNORE).all()
    assert (maps.kinds[:, 16:] == IGNORE).all()
    assert maps.kinds[14, 2] == BACKGROUND
    assert maps.things[12, 12] == maps.things[4, 4] == 1
    assert maps.things[6, 6] == 0
    assert maps.things[14, 2] == IGNORE


def test_exposure_changes_nothing() -> None:
    torch.manual_seed(0)
    model = create_model("watershed", num_classes=2, base_channels=4).eval()
    image = torch.rand(3, 64, 70)
    with torch.no_grad():
        plain, dark = model([image]), model([image * 0.05 - 2])
    assert len(plain[0]["scores"]) == len(dark[0]["scores"]) > 0
    torch.testing.assert_close(plain[0]["scores"], dark[0]["scores"], atol=1e-4, rtol=1e-3)
