"""Areas and overlaps of many objects: masks as packed bits, boxes as corners."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segcore.errors import DataError, ShapeError
from segcore.inference import rle

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Words = NDArray[np.uint64]

_WORD = 64  # pixels in a word
_AT_ONCE = 32  # masks binarised and packed at a time, which bounds the memory beside the input


@dataclass(frozen=True)
class PackedMasks:
    """Binary masks of one image, 64 pixels of a row in a word.

    An eighth of a byte a pixel makes counting quick; the extent of each mask makes most pairs of a
    crowded image cost nothing.

    Args:
        size: (height, width) of the image; (0, 0) where an empty list of RLE does not tell.

    Shape:
        words: [n, H, ceil(W / 64)] uint64
        areas: [n] int64, pixels
        extents: [n, 4] int64: first and last + 1 row, first and last + 1 word; zeros of an empty
            mask
    """

    words: Words
    size: tuple[int, int]
    areas: Integers
    extents: Integers

    def __len__(self) -> int:
        return len(self.words)

    def take(self, indices: Integers) -> "PackedMasks":
        """These masks, in this order."""
        return PackedMasks(
            self.words[indices], self.size, self.areas[indices], self.extents[indices]
        )


def pack_masks(masks: Any, indices: Integers | None = None) -> PackedMasks:
    """Pack the masks of an image.

    Args:
        masks: a tensor or array [n, H, W] or [n, 1, H, W], bool or integer (not 0 is inside) or
            probabilities (above 0.5 is inside); or a list of COCO RLE dicts: `size` [H, W] and
            `counts`, compressed or a list of runs; or masks that are packed already.
        indices: which masks, in which order; all by default.

    Raises:
        ShapeError: the masks have another shape, or RLE of unlike sizes.
        DataError: an RLE is damaged.
    """
    if isinstance(masks, PackedMasks):
        return masks if indices is None else masks.take(indices)
    if isinstance(masks, Sequence):
        return _packed(*_pack_runs(masks if indices is None else [masks[i] for i in indices]))
    dense = torch.as_tensor(masks).detach()
    if dense.dim() == 4 and dense.shape[1] == 1:
        dense = dense[:, 0]
    if dense.dim() != 3:
        raise ShapeError(
            f"masks are {tuple(dense.shape)}: give [n, H, W], [n, 1, H, W] or a list of COCO RLE"
        )
    if indices is None:
        indices = np.arange(len(dense))
    _, height, width = dense.shape
    words = np.zeros((len(indices), height, -(-width // _WORD)), dtype=np.uint64)
    for start in range(0, len(indices), _AT_ONCE):
        chosen = torch.from_numpy(indices[start : start + _AT_ONCE])
        part = dense[chosen.to(dense.device)]
        inside = part > 0.5 if part.is_floating_point() else part != 0
        _write(words[start : start + _AT_ONCE], inside.cpu().numpy())
    return _packed(words, (height, width))


def _pack_runs(masks: Sequence[Any]) -> tuple[Words, tuple[int, int]]:
    """Words and image size of COCO RLE."""
    sizes = {tuple(int(side) for side in mask["size"]) for mask in masks}
    if len(sizes) > 1:
        raise ShapeError(f"the masks of one image have sizes {sorted(sizes)}: give one size")
    height, width = sizes.pop() if sizes else (0, 0)
    words = np.zeros((len(masks), height, -(-width // _WORD)), dtype=np.uint64)
    for i, mask in enumerate(masks):
        counts = mask["counts"]
        if isinstance(counts, str | bytes):
            inside = rle.decode(counts, height, width)
        else:
            inside = _expand(np.asarray(counts, dtype=np.int64), height, width)
        _write(words[i], inside)
    return words, (height, width)


def _expand(runs: Integers, height: int, width: int) -> NDArray[np.bool_]:
    """The mask of uncompressed runs, which start with zeros and go down the columns."""
    if (runs < 0).any() or runs.sum() != height * width:
        raise DataError(
            f"RLE counts cover {runs.sum()} pixels, the mask {height}x{width} has "
            f"{height * width}: check that counts and image size belong together"
        )
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width, order="F")


def _write(words: Words, inside: NDArray[np.bool_]) -> None:
    """Set the bits of words [..., ceil(W / 64)] from [..., W]."""
    packed = np.packbits(inside, axis=-1)
    words.view(np.uint8)[..., : packed.shape[-1]] = packed


def _packed(words: Words, size: tuple[int, int]) -> PackedMasks:
    rows, columns = np.bitwise_or.reduce(words, axis=2), np.bitwise_or.reduce(words, axis=1)
    extents = np.concatenate([_span(rows != 0), _span(columns != 0)], axis=1)
    return PackedMasks(words, size, count_bits(words), extents)


def _span(present: NDArray[np.bool_]) -> Integers:
    """First and last + 1 True of each row [n, L]; zeros where there is none."""
    if not present.shape[1]:
        return np.zeros((len(present), 2), dtype=np.int64)
    first, last = present.argmax(1), present.shape[1] - present[:, ::-1].argmax(1)
    filled = present.any(axis=1, keepdims=True)
    return np.where(filled, np.stack([first, last], axis=1), 0)


def count_bits(words: Words) -> Integers:
    """Bits that are set in each mask.

    Shape:
        words: [n, h, w] uint64, contiguous
        returns: [n] int64
    """
    if not hasattr(np, "bitwise_count"):  # numpy before 2.0
        return count_bits_by_table(words)
    return np.asarray(np.bitwise_count(words).sum(axis=(1, 2), dtype=np.int64))


def count_bits_by_table(words: Words) -> Integers:
    """`count_bits` where numpy has no instruction for it: bytes looked up in a table."""
    table = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)
    return np.asarray(table[words.view(np.uint8)].sum(axis=(1, 2), dtype=np.int64))


def intersections(first: PackedMasks, second: PackedMasks) -> Integers:
    """Pixels that each pair of masks shares.

    Shape:
        returns: [len(first), len(second)] int64

    Raises:
        ShapeError: the masks belong to images of unlike sizes.
    """
    shared = np.zeros((len(first), len(second)), dtype=np.int64)
    if not shared.size:
        return shared
    if first.size != second.size:
        raise ShapeError(
            f"predicted masks are of an image {first.size}, true ones of {second.size}: "
            "resize the prediction to the image"
        )
    tops, bottoms, lefts, rights = second.extents.T
    for i, (top, bottom, left, right) in enumerate(first.extents.tolist()):
        meets = (tops < bottom) & (bottoms > top) & (lefts < right) & (rights > left)
        near = np.flatnonzero(meets)
        if near.size:
            window = (slice(top, bottom), slice(left, right))
            shared[i, near] = count_bits(second.words[near, *window] & first.words[i][window])
    return shared


def mask_iou(first: PackedMasks, second: PackedMasks, crowd: NDArray[np.bool_]) -> Floats:
    """IoU of each pair of masks; with a crowd, the share of the first mask that lies in it.

    Shape:
        crowd: [len(second)] bool
        returns: [len(first), len(second)] float64
    """
    shared = intersections(first, second)
    return _ratio(shared, first.areas[:, None], second.areas, crowd)


def box_iou(first: Floats, second: Floats, crowd: NDArray[np.bool_]) -> Floats:
    """IoU of each pair of boxes; with a crowd, the share of the first box that lies in it.

    Shape:
        first, second: [n, 4], [m, 4] xyxy
        crowd: [m] bool
        returns: [n, m] float64
    """
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clip(min=0).prod(-1)
    return _ratio(shared, box_area(first)[:, None], box_area(second), crowd)


def box_area(boxes: Floats) -> Floats:
    """Areas [n] of boxes [n, 4] xyxy."""
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(-1))


def _ratio(shared: Any, first: Any, second: Any, crowd: NDArray[np.bool_]) -> Floats:
    whole = np.where(crowd, first, first + second - shared)
    empty = np.zeros(shared.shape)
    return np.asarray(np.divide(shared, whole, out=empty, where=(shared > 0) & (whole > 0)))
