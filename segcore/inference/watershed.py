"""Touching objects out of per-pixel probabilities: markers, then a watershed on their borders.

The watershed is the minimum spanning forest rooted in the markers, of a well-kept library's
spanning tree: each pixel goes to the marker from which the path with the lowest pass leads to it.
scipy's own watershed_ift follows differences of neighbours and so cuts a smooth ridge at its flank.

References: Cousty et al. 2009, Watershed Cuts, doi:10.1109/TPAMI.2008.173;
Ronneberger, Fischer & Brox 2015, arXiv:1505.04597 (borders that keep touching cells apart).
"""

import numpy as np
from numpy.typing import NDArray

from segcore.errors import OptionError, ShapeError

Ids = NDArray[np.int32]
# Among passes of (almost) one height the nearer marker wins.
_TIE = 1e-4


def flood(height: NDArray[np.floating], markers: Ids, mask: NDArray[np.bool_]) -> Ids:
    """Watershed of `height` from `markers` within `mask`, by 4-neighbours, without lines between.

    Args:
        height: finite.
        markers: 0 for none, every other value a basin; those outside of the mask count nowhere.
        mask: where there is anything to divide.

    Shape:
        height, markers, mask: [H, W]
        returns: [H, W] int32 ids of markers; 0 outside of the mask and where no marker leads to

    Raises:
        ShapeError: unlike shapes.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

    if not height.shape == markers.shape == mask.shape or height.ndim != 2:
        raise ShapeError(
            f"height is {height.shape}, markers {markers.shape}, mask {mask.shape}: "
            "give three maps of one shape [H, W]"
        )
    pixels = np.flatnonzero(mask)
    seeds = markers.reshape(-1)[pixels]
    result = np.zeros(mask.size, dtype=np.int32)
    if not seeds.any():
        return result.reshape(mask.shape)
    heights = height.reshape(-1)[pixels].astype(np.float64)
    first, second = _neighbours(mask)
    passes = np.maximum(heights[first], heights[second]) - heights.min() + 1.0
    root, rooted = len(pixels), np.flatnonzero(seeds)
    values = np.concatenate([passes, np.full(len(rooted), 0.5)])  # the root's edges come first
    rows = np.concatenate([first, np.full(len(rooted), root)])
    columns = np.concatenate([second, rooted])
    graph = coo_array((values, (rows, columns)), shape=(root + 1, root + 1))
    forest = minimum_spanning_tree(graph.tocsr()).tocoo()
    kept = (forest.row != root) & (forest.col != root)
    trees = coo_array((forest.data[kept], (forest.row[kept], forest.col[kept])), shape=(root, root))
    count, tree = connected_components(trees.tocsr(), directed=False)
    owner = np.zeros(count, dtype=np.int32)
    owner[tree[rooted]] = seeds[rooted]
    result[pixels] = owner[tree]
    return result.reshape(mask.shape)


def separate_objects(
    interior: NDArray[np.floating],
    border: NDArray[np.floating],
    *,
    threshold: float = 0.5,
    marker_threshold: float = 0.5,
    min_area: int = 1,
) -> Ids:
    """Number the objects of a picture.

    Foreground is where interior + border exceed `threshold`. Markers are the connected interiors;
    a foreground without one is an object by itself. The flood rises over the border probability,
    with the distance transform of the markers where that is level.

    Args:
        interior: probability of an object's inside, 0..1.
        border: probability of its rim, 0..1.
        threshold: of the foreground.
        marker_threshold: of the interior.
        min_area: smaller objects are dropped, in pixels.

    Shape:
        interior, border: [H, W]
        returns: [H, W] int32; 0 is background, objects are 1..n

    Raises:
        OptionError: a threshold outside 0..1, or min_area below 0.
        ShapeError: the maps are unlike.
    """
    from scipy.ndimage import distance_transform_edt, label

    for name, value in (("threshold", threshold), ("marker_threshold", marker_threshold)):
        if not 0 <= value <= 1:
            raise OptionError(f"{name} is {value}: give a probability in 0..1")
    if min_area < 0:
        raise OptionError(f"min_area is {min_area}: give pixels, at least 0")
    if interior.shape != border.shape or interior.ndim != 2:
        raise ShapeError(f"interior is {interior.shape}, border {border.shape}: give two [H, W]")
    mask = interior + border > threshold
    markers, count = label((interior > marker_threshold) & mask)
    blobs, blob_count = label(mask)
    marked = np.zeros(blob_count + 1, dtype=bool)
    marked[blobs[markers > 0]] = True
    alone = mask & ~marked[blobs]
    markers = np.where(alone, blobs + count, markers).astype(np.int32)
    distance = distance_transform_edt(markers == 0)
    objects = flood(border.astype(np.float64) + _TIE * distance, markers, mask)
    return keep_larger(objects, min_area)


def keep_larger(objects: Ids, min_area: int) -> Ids:
    """Drop objects below `min_area` pixels and number the rest 1..n in the order of their ids."""
    names, dense = np.unique(objects, return_inverse=True)
    dense = dense.reshape(objects.shape)
    areas = np.bincount(dense.reshape(-1), minlength=len(names))
    kept = (names != 0) & (areas >= min_area)
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[dense]


def _neighbours(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of 4-neighbours within the mask, as ranks among its pixels."""
    rank = np.cumsum(mask.reshape(-1)).reshape(mask.shape) - 1
    down = mask[:-1] & mask[1:]
    right = mask[:, :-1] & mask[:, 1:]
    first = np.concatenate([rank[:-1][down], rank[:, :-1][right]])
    second = np.concatenate([rank[1:][down], rank[:, 1:][right]])
    return first, second
