"""COCO run-length encoding of binary masks in numpy, byte for byte what the COCO API writes.

Runs go down the columns and start with a run of zeros. A run from the third on is stored as its
difference to the run two before it, in groups of five bits, least significant first, each plus
48 as an ASCII character; bit 5 of a group says that another follows.

Reference: Lin et al. 2014, arXiv:1405.0312, and `rleToString` of its mask API.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segcore.errors import DataError, ShapeError

GROUPS = 8

Ints = NDArray[np.int64]


def encode(mask: NDArray[np.bool_]) -> str:
    """Compress a binary mask.

    Args:
        mask: bool or 0/1, [H, W].

    Raises:
        ShapeError: the mask is not two-dimensional.
    """
    if mask.ndim != 2:
        raise ShapeError(f"mask has shape {mask.shape}: give one binary mask [H, W]")
    return encode_window(mask, (0, 0), (mask.shape[0], mask.shape[1]))


def encode_window(window: NDArray[np.bool_], corner: tuple[int, int], size: tuple[int, int]) -> str:
    """Compress a mask of which only a window is given; all else is 0.

    Args:
        window: bool or 0/1, [h, w].
        corner: (top, left) of the window in the mask.
        size: (height, width) of the mask.
    """
    height, total = size[0], size[0] * size[1]
    columns = np.zeros((window.shape[1], window.shape[0] + 2), dtype=bool)
    columns[:, 1:-1] = window.T
    column, row = np.divmod(np.flatnonzero(columns[:, 1:] != columns[:, :-1]), window.shape[0] + 1)
    edges = (corner[1] + column) * height + corner[0] + row
    joined = np.zeros(edges.size, dtype=bool)  # a run that goes on at the top of the next column
    joined[1:-1:2] = edges[1:-1:2] == edges[2::2]
    joined[2::2] = joined[1:-1:2]
    edges = edges[~joined]
    last = [] if edges.size and edges[-1] == total else [total]
    ends: Ints = np.concatenate([[0], edges, last]).astype(np.int64)
    runs = ends[1:] - ends[:-1]
    deltas = runs.copy()
    deltas[3:] -= runs[1:-2]
    return _pack(deltas)


def _pack(values: Ints) -> str:
    """Write signed run differences as characters of five bits."""
    left = values[:, None] >> (5 * np.arange(GROUPS))
    groups = left & 31
    more = left >> 5 != np.where(groups & 16, -1, 0)
    used = np.ones(groups.shape, dtype=bool)
    used[:, 1:] = np.logical_and.accumulate(more, axis=1)[:, :-1]
    text = (groups | np.where(more, 32, 0)) + 48
    return text[used].astype(np.uint8).tobytes().decode("ascii")


def decode(counts: str | bytes, height: int, width: int) -> NDArray[np.bool_]:
    """Restore the mask [height, width] of compressed counts.

    Raises:
        DataError: the counts are damaged or belong to a mask of another size.
    """
    mask = np.zeros((height, width), dtype=bool)
    _, rows, columns = decode_pixels([counts], height, width)
    mask[rows, columns] = True
    return mask


def decode_pixels(
    counts: Sequence[str | bytes], height: int, width: int
) -> tuple[Ints, Ints, Ints]:
    """Where the pixels of many masks of one size are, all at once.

    Args:
        counts: compressed, of each mask.
        height, width: of the masks.

    Returns:
        (mask, row, column) of each pixel that is set; masks in order, each down its columns.

    Raises:
        DataError: counts are damaged or belong to a mask of another size.
    """
    if not counts:
        none = np.zeros(0, dtype=np.int64)
        return none, none, none
    texts = [c.encode("ascii", "replace") if isinstance(c, str) else c for c in counts]
    deltas, numbers = _unpack(texts)
    first = np.repeat(np.cumsum(numbers) - numbers, numbers)
    place = np.arange(deltas.size) - first
    odd = _sums(np.where(place % 2 == 1, deltas, 0), first)
    even = _sums(np.where((place % 2 == 0) & (place > 0), deltas, 0), first)
    runs = np.where(place % 2 == 1, odd, np.where(place == 0, deltas, even))
    ends = _sums(runs, first)
    owner = np.repeat(np.arange(len(texts)), numbers)
    totals = np.bincount(owner, weights=runs, minlength=len(texts)).astype(np.int64)
    wrong = (totals != height * width) | (np.bincount(owner[runs < 0], minlength=len(texts)) > 0)
    if wrong.any():
        raise DataError(
            f"RLE counts cover {totals[wrong][0]} pixels, the mask {height}x{width} has "
            f"{height * width}: check that counts and image size belong together"
        )
    ones = place % 2 == 1
    lengths = runs[ones]
    total = int(lengths.sum())
    offset = np.repeat(ends[ones] - lengths - (np.cumsum(lengths) - lengths), lengths)
    column, row = np.divmod(offset + np.arange(total), height)
    return np.repeat(owner[ones], lengths), row, column


def _unpack(texts: Sequence[bytes]) -> tuple[Ints, Ints]:
    """(signed differences of all texts, how many each has).

    Raises:
        DataError: a text holds another byte, or ends within a number.
    """
    groups = np.frombuffer(b"".join(texts), dtype=np.uint8).astype(np.int64) - 48
    wrong = groups[(groups < 0) | (groups > 63)]
    if wrong.size:
        raise DataError(
            f"RLE counts hold the byte {wrong[0] + 48}: expected 48..111; encode them anew"
        )
    final = groups & 32 == 0
    stops = np.cumsum([len(text) for text in texts])
    cut = [not text or not final[stop - 1] for text, stop in zip(texts, stops, strict=True)]
    ends = np.flatnonzero(final)
    sizes = np.diff(ends, prepend=-1)
    if any(cut) or sizes.max() > GROUPS:
        raise DataError("RLE counts end within a number, or have none: encode them anew")
    starts = ends - sizes + 1
    shift = 5 * (np.arange(groups.size) - np.repeat(starts, sizes))
    values = np.add.reduceat((groups & 31) << shift, starts)
    values -= np.where(groups[ends] & 16, np.int64(1) << (5 * sizes), 0)
    return values, np.diff(np.searchsorted(ends, stops), prepend=0)


def _sums(values: Ints, first: Ints) -> Ints:
    """Cumulative sums that start anew with each mask; `first` is where the mask of each starts."""
    sums = np.cumsum(values)
    return sums - (sums - values)[first]
