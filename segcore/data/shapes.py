"""How large and how thick the objects of a mask are, and where each class is: from its runs.

A run is a stretch of equal values in one row. A mask has few of them, so that all classes are
measured at once, without a pass over the pixels for each.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

POINTS = 32
MIN_OBJECT_PX = 4
MAX_RUNS = 1 << 18
DENSE = 0.15

Mask = NDArray[np.uint8]
Ints = NDArray[np.int64]

_GOLDEN = 0.618033988749895


@dataclass(frozen=True, slots=True)
class ClassShape:
    """One class in one mask.

    Args:
        index: of the class.
        areas, counts: pixels of its 8-connected components of at least 4 pixels: each area that
            occurs, and how often.
        thickness_px: 4 x the mean distance of `points` to its outside: of a ribbon, the width.
        points: int32 [n, 2] of (y, x): 32 of its pixels, drawn evenly, or all.
    """

    index: int
    areas: NDArray[np.int32]
    counts: NDArray[np.int32]
    thickness_px: float
    points: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Runs:
    """Stretches of equal values in the rows of a mask, in reading order.

    Args:
        starts: flat index of the first pixel.
        lengths: in pixels.
        values: of the pixels.
        width: of the mask.
    """

    starts: Ints
    lengths: Ints
    values: Mask
    width: int


def measure_shapes(mask: Mask, num_classes: int, ignore_index: int, seed: str) -> list[ClassShape]:
    """Objects, thickness and places of each class in a mask.

    Of a mask of more than 262 144 runs (noise of millions of pixels), objects are measured on
    every second pixel, or third, ...

    Args:
        mask: uint8 [H, W] of class indices.
        num_classes: of the dataset.
        ignore_index: value that is no class.
        seed: which pixels are drawn follows from it, the sample's id say.
    """
    runs = _find_runs(mask)
    classes = [
        int(value)
        for value in np.flatnonzero(np.bincount(runs.values))
        if value < num_classes and value != ignore_index
    ]
    drawn = dict(_draw(runs, classes, zlib.crc32(seed.encode()) / 2**32))
    stride = ceil((runs.starts.size / MAX_RUNS) ** 0.5)
    coarse = runs if stride == 1 else _find_runs(mask[::stride, ::stride])
    values, areas = _components(coarse)
    thickness = _thickness(mask, drawn)
    shapes = []
    for index in classes:
        found, counts = np.unique(areas[values == index] * stride**2, return_counts=True)
        large = found >= MIN_OBJECT_PX
        points = np.stack(np.divmod(drawn[index], mask.shape[1]), axis=1)
        shapes.append(
            ClassShape(
                index=index,
                areas=found[large].astype(np.int32),
                counts=counts[large].astype(np.int32),
                thickness_px=thickness[index],
                points=points.astype(np.int32),
            )
        )
    return shapes


def _find_runs(mask: Mask) -> _Runs:
    first = np.ones(mask.shape, dtype=bool)
    np.not_equal(mask[:, 1:], mask[:, :-1], out=first[:, 1:])
    starts = np.flatnonzero(first)
    lengths = np.diff(starts, append=mask.size)
    return _Runs(starts, lengths, mask.ravel()[starts], mask.shape[1])


def _draw(runs: _Runs, classes: list[int], offset: float) -> Iterator[tuple[int, Ints]]:
    """Per class, flat indices of up to 32 of its pixels.

    One pixel of each of equal parts of the class's pixels in reading order; where in its part
    steps by the golden ratio, which falls into no pattern of the mask.
    """
    for index in classes:
        own = np.flatnonzero(runs.values == index)
        ends = np.cumsum(runs.lengths[own])
        total = int(ends[-1])
        count = min(total, POINTS)
        places = np.arange(count)
        inside = (offset + places * _GOLDEN) % 1.0
        chosen = ((places + inside) * (total / count)).astype(np.int64)
        run = np.searchsorted(ends, chosen, side="right")
        yield index, runs.starts[own][run] + chosen - (ends[run] - runs.lengths[own][run])


def _components(runs: _Runs) -> tuple[Mask, Ints]:
    """(value, pixels) of each 8-connected component."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count, width = runs.starts.size, runs.width
    row_end = (runs.starts // width + 2) * width - 1  # last pixel of the row below
    low = np.maximum(runs.starts + width - 1, row_end - width + 1)
    high = np.minimum(runs.starts + runs.lengths + width, row_end)
    above = int(np.searchsorted(row_end, row_end[-1]))  # runs that have a row below
    first = np.searchsorted(runs.starts, low[:above], side="right") - 1
    last = np.searchsorted(runs.starts, high[:above], side="right") - 1
    touching = last - first + 1
    upper = np.repeat(np.arange(above), touching)
    lower = np.arange(upper.size) - np.repeat(np.cumsum(touching) - touching - first, touching)
    same = runs.values[upper] == runs.values[lower]
    edges = (np.ones(int(same.sum()), dtype=np.int8), (upper[same], lower[same]))
    graph = coo_array(edges, shape=(count, count))
    found, component = connected_components(graph, directed=False)
    areas = np.bincount(component, weights=runs.lengths, minlength=found).astype(np.int64)
    values = np.zeros(found, dtype=np.uint8)
    values[component] = runs.values
    return values, areas


def _thickness(mask: Mask, drawn: dict[int, Ints]) -> dict[int, float]:
    """Per class, 4 x the mean distance of the drawn pixels to the class's outside, in pixels.

    The distance is that to the nearest pixel which borders on another value, and a half: then a
    bar of width w has exactly w. The edge of the mask is no outside; a mask of one value has its
    shorter side.
    """
    if not drawn:
        return {}
    across, along = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    border = np.zeros(mask.shape, dtype=bool)
    border[1:] |= across
    border[:-1] |= across
    border[:, 1:] |= along
    border[:, :-1] |= along
    if not border.any():
        return dict.fromkeys(drawn, float(min(mask.shape)))
    distances = _distances(border, np.concatenate(list(drawn.values())))
    ends = np.cumsum([where.size for where in drawn.values()])[:-1]
    parts = np.split(distances, ends)
    return {i: 4 * (float(part.mean()) + 0.5) for i, part in zip(drawn, parts, strict=True)}


def _distances(border: NDArray[np.bool_], where: Ints) -> NDArray[np.float64]:
    """Euclidean distance of pixels, by flat index, to the nearest of `border`; exact.

    By a tree of the border's pixels, or of every pixel where there are many of them.
    """
    found = np.flatnonzero(border)
    if found.size > DENSE * border.size:
        from scipy.ndimage import distance_transform_edt

        distances: NDArray[np.float64] = distance_transform_edt(~border).ravel()[where]
        return distances
    from scipy.spatial import cKDTree

    width = border.shape[1]
    tree = cKDTree(
        np.stack(np.divmod(found, width), axis=1), balanced_tree=False, compact_nodes=False
    )
    nearest: NDArray[np.float64] = tree.query(np.stack(np.divmod(where, width), axis=1))[0]
    return nearest
