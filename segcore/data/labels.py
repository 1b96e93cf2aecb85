"""Source masks of every kind to class indices: index maps, palettes, grey values, colours."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segcore.data.codec import Pixels, is_deep, read_image, turned, upright
from segcore.data.sample import DatasetInfo
from segcore.errors import DataError


class LabelError(DataError):
    """A mask that cannot be read as class indices.

    Args:
        kind: what is wrong with it.
        value: what was found.
        fix: what to do.
    """

    def __init__(self, kind: str, value: str, fix: str) -> None:
        super().__init__(f"{kind} ({value}): {fix}")
        self.kind = kind
        self.value = value
        self.fix = fix


def read_labels(encoded: bytes, info: DatasetInfo, size: tuple[int, int] | None = None) -> Pixels:
    """Decode a source mask.

    Args:
        encoded: an image file: grey or palette with class indices, grey values of
            `info.mask_values`, or colours of `info.mask_colors`.
        info: how the dataset encodes its masks.
        size: (height, width) that it must have; None: any.

    Returns:
        uint8 [H, W]; values may still lie outside the dataset's classes.

    Raises:
        LabelError: it is no such mask.
    """
    try:
        mask = _open_mask(encoded)
    except LabelError:
        raise
    except DataError as error:
        fix = "replace the file by an intact copy"
        raise LabelError("unreadable mask", str(error), fix) from error
    if size is not None and (mask.height, mask.width) != size:
        raise LabelError(
            "size mismatch",
            f"mask {mask.height}x{mask.width}, image {size[0]}x{size[1]}",
            "give image and mask the same height and width",
        )
    if encoded.startswith(b"\xff\xd8\xff"):
        fix = "export it as PNG: JPEG changes class indices"
        raise LabelError("lossy mask", "JPEG", fix)
    if mask.mode == "P" and info.mask_colors:
        mask = mask.convert("RGB")
    if mask.mode in ("1", "L", "LA", "P"):
        return _indices(mask, info)
    pixels = np.asarray(mask.convert("RGB"), dtype=np.uint8)
    if not info.mask_colors and (pixels == pixels[:, :, :1]).all():
        return _indices(Image.fromarray(pixels[:, :, 0]), info)
    return _colors(pixels, info)


def _open_mask(encoded: bytes) -> Image.Image:
    """A mask, upright, of 8 bits per channel; deeper ones must hold values below 256."""
    image = read_image(encoded)
    if not is_deep(image, encoded):
        return upright(image, encoded)
    fix = "save class indices, below 256, as an 8-bit one-channel PNG"
    values = np.asarray(image)
    if values.ndim > 2:
        raise LabelError("16-bit mask", "16 bits per colour channel", fix)
    found = np.unique(values)
    wrong = found[~((found >= 0) & (found <= 255) & (found == np.rint(found)))]
    if wrong.size:
        raise LabelError("16-bit mask", _some(wrong), fix)
    return turned(Image.fromarray(values.astype(np.uint8)), image)


def _some(values: NDArray[Any]) -> str:
    """The first of some numbers."""
    return ", ".join(f"{value:g}" for value in values[:10]) + (", ..." if values.size > 10 else "")


def _indices(mask: Image.Image, info: DatasetInfo) -> Pixels:
    if mask.mode == "1" and not info.mask_values:
        return np.asarray(mask, dtype=np.uint8)
    if mask.mode in ("1", "LA"):
        mask = mask.convert("L")
    values: Pixels = np.asarray(mask, dtype=np.uint8)
    if not info.mask_values:
        return values
    table = np.zeros(256, dtype=np.uint8)
    known = np.zeros(256, dtype=bool)
    for value, index in info.mask_values.items():
        table[value], known[value] = index, True
    wrong = np.flatnonzero((np.bincount(values.ravel(), minlength=256) > 0) & ~known)
    if wrong.size:
        raise LabelError(
            "unknown mask value",
            ", ".join(map(str, wrong[:10])),
            f"use {', '.join(map(str, sorted(info.mask_values)))}, or map it in mask_values",
        )
    mapped: Pixels = table[values]
    return mapped


def _colors(pixels: Pixels, info: DatasetInfo) -> Pixels:
    packed: NDArray[np.int64] = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    if not info.mask_colors:
        raise LabelError(
            "RGB mask without a palette",
            _name_colors(np.unique(packed)),
            "save class indices as a one-channel PNG, or write each class's colour into "
            "classes.txt (name r g b)",
        )
    colors = {(r << 16) + (g << 8) + b: index for (r, g, b), index in info.mask_colors.items()}
    found, where = np.unique(packed, return_inverse=True)
    wrong = np.array([color for color in found if int(color) not in colors])
    if wrong.size:
        raise LabelError(
            "unknown mask colour",
            _name_colors(wrong),
            "use the colours of classes.txt only, without antialiasing",
        )
    table = np.array([colors[int(color)] for color in found], dtype=np.uint8)
    mapped: Pixels = table[where.reshape(packed.shape)]
    return mapped


def _name_colors(packed: NDArray[np.int64]) -> str:
    names = [f"({c >> 16},{c >> 8 & 255},{c & 255})" for c in packed[:5].tolist()]
    return " ".join(names) + (f" and {len(packed) - 5} more" if len(packed) > 5 else "")


def is_index_png(encoded: bytes) -> bool:
    """Whether a file is a one-channel 8-bit grey PNG, which shards keep byte for byte."""
    if not encoded.startswith(b"\x89PNG"):
        return False
    with Image.open(io.BytesIO(encoded)) as image:
        return image.mode == "L"
