"""Encoded images and masks to arrays and back: PNG, JPEG and the like by Pillow, and .npy."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from segcore.errors import DataError

ENCODINGS = ("keep", "png", "jpeg", "raw")
NPY_MAGIC = b"\x93NUMPY"
JPEG_QUALITY = 92

_GREY_MODES = ("1", "L", "LA")
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_ORIENTATION = 0x0112

Pixels = NDArray[np.uint8]


class DeepImageError(DataError):
    """An image of more than 8 bits per channel."""


def open_image(encoded: bytes) -> Image.Image:
    """Read an image completely and turn it upright as its EXIF orientation says.

    Raises:
        DeepImageError: it has more than 8 bits per channel.
        DataError: it is not an image, or truncated.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded))
        image.load()
    except UnidentifiedImageError as error:
        raise DataError("not an image file") from error
    except Exception as error:  # Pillow's decoders raise every kind of error on broken files
        raise DataError(f"broken image file: {error}") from error
    if image.mode in _DEEP_MODES or (encoded.startswith(b"\x89PNG") and encoded[24] == 16):
        raise DeepImageError("16 bits per channel or more: convert it to 8 bits")
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    return image


def is_grey(image: Image.Image) -> bool:
    """Whether an image has one channel (alpha aside)."""
    return image.mode in _GREY_MODES


def decode_image(encoded: bytes, channels: int) -> Pixels:
    """Decode an image to a fixed number of channels; alpha is dropped.

    Args:
        encoded: a file's bytes, .npy of [H, W, C] included.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        uint8 [H, W, channels].

    Raises:
        DataError: the bytes are not such an image.
    """
    if encoded.startswith(NPY_MAGIC):
        return _load_npy(encoded, channels)
    return to_array(open_image(encoded), channels)


def to_array(image: Image.Image, channels: int) -> Pixels:
    """uint8 [H, W, channels] of an image; channels is 1 (grey) or 3 (RGB)."""
    converted = image.convert("L" if channels == 1 else "RGB")
    array: Pixels = np.asarray(converted, dtype=np.uint8).reshape(image.height, image.width, -1)
    return array


def _load_npy(encoded: bytes, channels: int) -> Pixels:
    try:
        array: NDArray[Any] = np.load(io.BytesIO(encoded), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"unreadable .npy image: {error}") from error
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != channels:
        raise DataError(
            f".npy image is {array.dtype} {array.shape}, expected uint8 [H, W, {channels}]"
        )
    return array


def decode_mask(encoded: bytes) -> Pixels:
    """Decode a stored mask: uint8 [H, W] of class indices.

    Raises:
        DataError: the bytes are not an 8-bit one-channel image.
    """
    image = open_image(encoded)
    if image.mode not in ("L", "P", "1"):
        raise DataError(f"mask of mode {image.mode}: a stored mask has one 8-bit channel")
    return np.asarray(image, dtype=np.uint8)


def encode_image(pixels: Pixels, encoding: str) -> bytes:
    """Encode uint8 [H, W, C] as "png", "jpeg" (quality 92, 4:4:4) or "raw" (.npy)."""
    buffer = io.BytesIO()
    if encoding == "raw":
        np.save(buffer, np.ascontiguousarray(pixels), allow_pickle=False)
        return buffer.getvalue()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if encoding == "jpeg":
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def encode_mask(mask: Pixels) -> bytes:
    """Encode uint8 [H, W] as a grey PNG of the same values."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize to (height, width), bilinear with antialiasing; palettes and bits become colours."""
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("P", "PA"):
        image = image.convert("RGB")
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def resize_mask(mask: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize class indices uint8 [H, W] to (height, width), nearest neighbour."""
    resized = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized, dtype=np.uint8)
