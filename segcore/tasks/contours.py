"""Outlines of masks as polygons along the edges of pixels."""

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Point = tuple[int, int]
Ring = list[Point]
Ends = dict[Point, list[tuple[Point, Point]]]  # start of an edge -> its end, and its pixel


def polygons(mask: Bools, corner: tuple[int, int] = (0, 0)) -> list[list[Ring]]:
    """Polygons of a mask, each an outer ring and its holes, as GeoJSON has them.

    Rings run along the edges of pixels, so that filling them gives the mask again; parts that meet
    at a corner only are polygons of their own. The first point is repeated at the end.

    Args:
        mask: bool [h, w].
        corner: (top, left) of the mask in the image; points are (x, y) of it.
    """
    from scipy.ndimage import find_objects, label

    numbers, _ = label(mask)
    found = []
    for number, window in enumerate(find_objects(numbers), start=1):
        part = numbers[window] == number
        top, left = corner[0] + window[0].start, corner[1] + window[1].start
        rings = [[(x + left, y + top) for x, y in ring] for ring in _rings(_edges(part))]
        found.append(sorted(rings, key=_area, reverse=True))
    return found


def _edges(part: Bools) -> Ends:
    """The unit edges between inside and outside, which lead around what is inside."""
    padded = np.pad(part, 1)
    sides = (
        (padded[:-2, 1:-1], (1, 0), (0, 0)),  # outside is above: leftwards
        (padded[1:-1, :-2], (0, 0), (0, 1)),  # at the left: down
        (padded[2:, 1:-1], (0, 1), (1, 1)),  # below: rightwards
        (padded[1:-1, 2:], (1, 1), (1, 0)),  # at the right: up
    )
    edges: Ends = {}
    for beyond, (x0, y0), (x1, y1) in sides:
        for y, x in np.argwhere(part & ~beyond).tolist():
            edges.setdefault((x + x0, y + y0), []).append(((x + x1, y + y1), (x, y)))
    return edges


def _rings(edges: Ends) -> list[Ring]:
    """Follow all edges; where two pixels meet at a corner, stay with the one that was followed."""
    rings = []
    while edges:
        start = next(iter(edges))
        place, pixel, ring = start, None, [start]
        while place != start or pixel is None:
            ends = edges[place]
            own = [end for end in ends if end[1] == pixel]
            step = own[0] if own else ends[0]
            ends.remove(step)
            if not ends:
                del edges[place]
            place, pixel = step
            ring.append(place)
        rings.append(_corners(ring))
    return rings


def _corners(ring: Ring) -> Ring:
    """A closed ring without the points at which it goes straight on."""
    points = np.array(ring[:-1])
    steps = np.roll(points, -1, axis=0) - points
    turns = (steps != np.roll(steps, 1, axis=0)).any(axis=1)
    kept = [(int(x), int(y)) for x, y in points[turns]]
    return [*kept, kept[0]]


def _area(ring: Ring) -> float:
    x, y = np.array(ring).T
    return abs(float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum())) / 2
