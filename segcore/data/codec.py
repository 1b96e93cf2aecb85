"""Encoded images and masks to arrays and back: PNG, JPEG and the like by Pillow, and .npy."""

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from segcore.errors import DataError

ENCODINGS = ("keep", "png", "jpeg", "raw")
NPY_MAGIC = b"\x93NUMPY"
JPEG_QUALITY = 92

STRETCH = (0.001, 0.999)

_GREY_MODES = ("1", "L", "LA")
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 0x0102
_PNG = b"\x89PNG"

Pixels = NDArray[np.uint8]


def read_image(encoded: bytes) -> Image.Image:
    """Read an image completely, as it is stored: of any depth, not turned.

    Raises:
        DataError: it is not an image, or truncated.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded))
        image.load()
    except UnidentifiedImageError as error:
        raise DataError("not an image file") from error
    except Exception as error:  # Pillow's decoders raise every kind of error on broken files
        raise DataError(f"broken image file: {error}") from error
    return image


def open_image(encoded: bytes) -> Image.Image:
    """Read an image completely, in 8 bits and upright; see `upright`.

    Raises:
        DataError: it is not an image, or truncated, or has values that are no numbers.
    """
    return upright(read_image(encoded), encoded)


def upright(image: Image.Image, encoded: bytes) -> Image.Image:
    """Bring a loaded image to 8 bits (`to_eight_bit`) and turn it as its EXIF orientation says.

    Args:
        image: as Pillow opened it.
        encoded: its file, from which 16-bit colour PNG is read again: Pillow drops the low byte.

    Raises:
        DataError: it has values that are no numbers.
    """
    if image.mode in _DEEP_MODES:
        return turned(Image.fromarray(to_eight_bit(np.asarray(image))), image)
    if is_deep(image, encoded) and encoded.startswith(_PNG):
        return turned(Image.fromarray(to_eight_bit(_read_deep_png(encoded))), image)
    return turned(image, image)


def turned(image: Image.Image, source: Image.Image) -> Image.Image:
    """Turn an image as the EXIF orientation of its source says."""
    orientation = source.getexif().get(_ORIENTATION, 1)
    if orientation == 1:
        return image
    image.getexif()[_ORIENTATION] = orientation
    return ImageOps.exif_transpose(image)


def is_deep(image: Image.Image, encoded: bytes) -> bool:
    """Whether an image's file has more than 8 bits per channel."""
    if encoded.startswith(_PNG):
        return encoded[24] == 16
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
    return image.mode in _DEEP_MODES or max(bits) > 8


def loses_low_bits(image: Image.Image, encoded: bytes) -> bool:
    """Whether only the upper 8 bits of a deep image can be read: colour TIFF, say."""
    grey = image.mode in _DEEP_MODES
    return is_deep(image, encoded) and not grey and not encoded.startswith(_PNG)


def _read_deep_png(encoded: bytes) -> NDArray[np.uint16]:
    """uint16 [H, W] or [H, W, 3] of a 16-bit PNG; alpha is dropped."""
    import torch  # seconds to import, and such images are rare
    from torchvision.io import ImageReadMode, decode_image

    data = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    try:
        pixels: NDArray[np.uint16] = decode_image(data, ImageReadMode.UNCHANGED).numpy()
    except RuntimeError as error:
        raise DataError(f"broken image file: {error}") from error
    channels = pixels.shape[0]
    return pixels[0] if channels < 3 else np.moveaxis(pixels[:3], 0, 2)


def to_eight_bit(pixels: NDArray[Any]) -> Pixels:
    """Bring deeper pixels to 8 bits, by the same rule wherever an image comes from.

    Values of at most 255 (floats: of 0..1, which become 0..255) are kept. Others are stretched
    image by image, over all channels alike: the 0.1 % percentile becomes 0, that of 99.9 % 255. A
    12-bit camera's picture is then as bright as a 16-bit one's. Of an image of one value, an
    integer is divided by 256.

    Args:
        pixels: unsigned, signed or float [H, W] or [H, W, C].

    Raises:
        DataError: a value is infinite or no number.
    """
    if pixels.dtype == np.uint8 or not pixels.size:
        return pixels.astype(np.uint8)
    least, greatest = float(pixels.min()), float(pixels.max())
    if not np.isfinite([least, greatest]).all():
        raise DataError("its pixels are infinite or no numbers: replace them by numbers")
    floating = np.issubdtype(pixels.dtype, np.floating)
    if least >= 0 and greatest <= (1 if floating else 255):
        return np.rint(pixels * 255.0).astype(np.uint8) if floating else pixels.astype(np.uint8)
    low, high = np.quantile(pixels, STRETCH)
    if low == high:
        low, high = least, greatest
    if low == high:
        return np.full(pixels.shape, np.clip(least / 256, 0, 255), dtype=np.uint8)
    levels = (np.clip(pixels, low, high) - low) * (255 / (high - low))
    stretched: Pixels = np.rint(levels).astype(np.uint8)
    return stretched


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
    mode = "L" if channels == 1 else "RGB"
    converted = image if image.mode == mode else image.convert(mode)  # which would copy it
    array: Pixels = np.asarray(converted, dtype=np.uint8).reshape(image.height, image.width, -1)
    return array


def _load_npy(encoded: bytes, channels: int) -> Pixels:
    stream = io.BytesIO(encoded)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else _newer_header
        shape, _, dtype = read(stream)
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size != len(encoded) - stream.tell():
            raise DataError(
                f"unreadable .npy image: {size} bytes of {dtype} {shape} announced, "
                f"{len(encoded) - stream.tell()} there"
            )
        stream.seek(0)
        array: NDArray[Any] = np.load(stream, allow_pickle=False)
    except DataError:
        raise
    except Exception as error:  # numpy parses the header as Python: every kind of error
        raise DataError(f"unreadable .npy image: {error}") from error
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != channels:
        raise DataError(
            f".npy image is {array.dtype} {array.shape}, expected uint8 [H, W, {channels}]"
        )
    return array


def _newer_header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    raise DataError("unreadable .npy image: of a format other than 1.0, which is all that is used")


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
