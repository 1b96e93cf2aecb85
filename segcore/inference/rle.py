"""COCO run-length encoding of binary masks in numpy, byte for byte what the COCO API writes.

Runs go down the columns and start with a run of zeros. A run from the third on is stored as its
difference to the run two before it, in groups of five bits, least significant first, each plus
48 as an ASCII character; bit 5 of a group says that another follows.

Reference: Lin et al. 2014, arXiv:1405.0312, and `rleToString` of its mask API.
"""

import numpy as np
from numpy.typing import NDArray

from segcore.errors import DataError, ShapeError


def encode(mask: NDArray[np.bool_]) -> str:
    """Compress a binary mask.

    Args:
        mask: bool or 0/1, [H, W].

    Raises:
        ShapeError: the mask is not two-dimensional.
    """
    if mask.ndim != 2:
        raise ShapeError(f"mask has shape {mask.shape}: give one binary mask [H, W]")
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    start = [0, 0] if flat.size and flat[0] else [0]
    runs = np.diff(np.concatenate([start, changes, [flat.size]]).astype(np.int64))
    deltas = runs.copy()
    deltas[3:] -= runs[1:-2]
    return "".join(_pack(int(value)) for value in deltas)


def decode(counts: str | bytes, height: int, width: int) -> NDArray[np.bool_]:
    """Restore the mask [height, width] of compressed counts.

    Raises:
        DataError: the counts are damaged or belong to a mask of another size.
    """
    text = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    runs: list[int] = []
    value = shift = 0
    for code in text:
        group = code - 48
        if not 0 <= group < 64:
            raise DataError(f"RLE counts hold the byte {code}: expected 48..111; encode them anew")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift or any(run < 0 for run in runs) or sum(runs) != height * width:
        raise DataError(
            f"RLE counts cover {sum(runs)} pixels, the mask {height}x{width} has {height * width}:"
            " check that counts and image size belong together"
        )
    ones = np.arange(len(runs)) % 2 == 1
    return np.repeat(ones, runs).reshape(height, width, order="F")


def _pack(value: int) -> str:
    """Write one signed run difference as characters of five bits."""
    text = []
    while True:
        group = value & 31
        value >>= 5
        more = value != (-1 if group & 16 else 0)
        text.append(chr((group | 32 if more else group) + 48))
        if not more:
            return "".join(text)
