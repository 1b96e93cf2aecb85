"""COCO's segmentations, polygons or run lengths, as binary masks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segcore.errors import DataError
from segcore.inference import rle

Bits = NDArray[np.bool_]

OUTSIDE_PX = 1.0


class SegmentationError(DataError):
    """A segmentation that shows no object.

    Args:
        kind: what is wrong with it.
        value: what was found.
        fix: what to do.
        severity: "error", or "warning" where leaving the object out is all that is needed.
    """

    def __init__(self, kind: str, value: str, fix: str, severity: str = "error") -> None:
        super().__init__(f"{kind} ({value}): {fix}")
        self.kind = kind
        self.value = value
        self.fix = fix
        self.severity = severity


def read_segmentation(segmentation: Any, size: tuple[int, int]) -> tuple[Bits, tuple[int, int]]:
    """Rasterise polygons, or decode run lengths (a list, or compressed).

    Args:
        segmentation: [[x, y, x, y, ...], ...] in pixels, or {"counts": ..., "size": [H, W]}.
        size: (height, width) of the image.

    Returns:
        bool [h, w], a window of the image that holds all of the object; its (top, left).

    Raises:
        SegmentationError: the run lengths are damaged or of another size, a polygon has fewer than
            three corners, or no pixel of the image belongs to the object.
    """
    if isinstance(segmentation, Mapping):
        mask = _read_runs(segmentation, size)
        if not mask.any():
            raise SegmentationError("empty object", "no pixel", "draw it, or remove it")
        return mask, (0, 0)
    if not isinstance(segmentation, list) or not segmentation:
        value = "no polygon" if not segmentation else repr(segmentation)[:40]
        raise SegmentationError("empty object", value, "draw its outline, or remove it")
    outlines = [_outline(polygon) for polygon in segmentation]
    corners = np.concatenate(outlines)
    low, high = corners.min(axis=0), corners.max(axis=0)
    box = f"x {low[0]:g}..{high[0]:g}, y {low[1]:g}..{high[1]:g}; image {size[0]}x{size[1]}"
    limits = np.array([size[1], size[0]])
    if (high <= 0).any() or (low >= limits).any():
        raise SegmentationError("object outside the picture", box, "correct or remove it")
    left, top = np.floor(np.clip(low, 0, limits)).astype(int)
    right, bottom = np.ceil(np.clip(high, 0, limits)).astype(int)
    window = np.zeros((bottom - top, right - left), dtype=bool)
    for outline in outlines:
        window |= fill_polygon(outline - (left, top), (bottom - top, right - left))
    if not window.any():
        fix = "nothing: it is left out"
        raise SegmentationError("object smaller than a pixel", box, fix, "warning")
    return window, (int(top), int(left))


def reaches_outside(segmentation: Any, size: tuple[int, int]) -> str:
    """What of some polygons lies more than a pixel outside of the image; "" if nothing does."""
    if isinstance(segmentation, Mapping):
        return ""
    corners = np.concatenate([_outline(polygon) for polygon in segmentation])
    low, high = corners.min(axis=0), corners.max(axis=0)
    limits = np.array([size[1], size[0]]) + OUTSIDE_PX
    if (low >= -OUTSIDE_PX).all() and (high <= limits).all():
        return ""
    return f"x {low[0]:g}..{high[0]:g}, y {low[1]:g}..{high[1]:g}; image {size[0]}x{size[1]}"


def _outline(polygon: Any) -> NDArray[np.float64]:
    """Corners [V, 2] of (x, y)."""
    fix = "give it 3 corners or more, as [x, y, x, y, x, y, ...], or remove it"
    try:
        numbers = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError) as error:
        value = repr(polygon)[:40]
        raise SegmentationError("unreadable polygon", value, fix) from error
    if numbers.ndim != 1 or numbers.size % 2 or not np.isfinite(numbers).all():
        value = f"{numbers.size} numbers of shape {numbers.shape}"
        raise SegmentationError("unreadable polygon", value, fix)
    if numbers.size < 6:
        value = f"{numbers.size // 2} corners"
        raise SegmentationError("polygon with fewer than 3 points", value, fix)
    return numbers.reshape(-1, 2)


def fill_polygon(corners: NDArray[np.float64], size: tuple[int, int]) -> Bits:
    """Pixels whose centre lies inside a polygon, by the even-odd rule.

    Args:
        corners: [V, 2] of (x, y) in pixels; pixel i covers [i, i + 1), its centre is i + 0.5.
        size: (height, width) of the image.

    Returns:
        bool [H, W].
    """
    height, width = size
    toggles = np.zeros((height, width + 1), dtype=np.int64)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        top, bottom = min(y0, y1), max(y0, y1)
        first, last = np.clip(np.ceil([top - 0.5, bottom - 0.5]), 0, height).astype(int)
        rows = np.arange(first, last)
        if rows.size:
            crossing = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            columns = np.clip(np.ceil(crossing - 0.5), 0, width).astype(int)
            np.add.at(toggles, (rows, columns), 1)
    inside: Bits = toggles.cumsum(axis=1)[:, :width] % 2 == 1
    return inside


def _read_runs(segmentation: Mapping[str, Any], size: tuple[int, int]) -> Bits:
    counts, found = segmentation.get("counts"), segmentation.get("size")
    fix = f"encode the mask at its image's size, [{size[0]}, {size[1]}]"
    if found is None or list(found) != list(size):
        value = f"size {found}, image {list(size)}"
        raise SegmentationError("run lengths of another size", value, fix)
    try:
        if isinstance(counts, str):
            return rle.decode(counts, *size)
        runs = np.asarray(counts, dtype=np.int64)
        if runs.ndim != 1 or (runs < 0).any() or int(runs.sum()) != size[0] * size[1]:
            raise DataError(f"they cover {runs.sum()} pixels of {size[0] * size[1]}")
    except (DataError, TypeError, ValueError) as error:
        raise SegmentationError("damaged run lengths", str(error), fix) from error
    ones = np.arange(runs.size) % 2 == 1
    return np.repeat(ones, runs).reshape(size, order="F")
