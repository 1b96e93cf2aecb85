"""Any image that a user may hand in, as uint8 [H, W, C] of the channels a model was trained on."""

import io
import threading
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from segcore.data.codec import NPY_MAGIC, decode_image, to_eight_bit, upright
from segcore.errors import DataError, ShapeError

ImageArray = NDArray[np.uint8]
ImageLike = str | Path | bytes | Image.Image | NDArray[np.generic] | torch.Tensor

PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
MAX_MEGAPIXELS = 200.0
NPY = "NPY"

_GUARD = threading.Lock()  # of Pillow's own limit, a global of that module


def to_array(
    image: ImageLike, in_channels: int = 3, *, max_megapixels: float | None = MAX_MEGAPIXELS
) -> ImageArray:
    """Bring an image to uint8 [H, W, in_channels].

    An image file is turned upright as its EXIF orientation says, as it is when shards are made
    and as every viewer shows it. 16-bit values, and floats of a file, are brought to 8 bits as they
    are there (`codec.to_eight_bit`); alpha is dropped unless the model has four channels.

    Args:
        image: path, encoded bytes (of a file, or .npy as raw shards hold it), PIL image, numpy
            [H, W] or [H, W, C] (uint8, uint16 or bool), or tensor [C, H, W] (uint8, or float in
            0..1).
        in_channels: of the result.
        max_megapixels: largest image file that is decoded, by its header; None: any.

    Raises:
        DataError: the image cannot be read, is too large, or has values of an unknown range.
        ShapeError: its channels cannot be brought to `in_channels`.
    """
    if isinstance(image, (str, Path)):
        return _from_file(Path(image), in_channels, max_megapixels)
    if isinstance(image, bytes):
        if image.startswith(NPY_MAGIC):
            return decode_image(image, in_channels)
        return _from_file(io.BytesIO(image), in_channels, max_megapixels)
    if isinstance(image, Image.Image):
        return _from_pil(image, in_channels)
    if isinstance(image, torch.Tensor):
        return _from_numpy(_tensor_pixels(image), in_channels)
    if isinstance(image, np.ndarray):
        return _from_numpy(image, in_channels)
    raise DataError(
        f"an image cannot be a {type(image).__name__}: give a path, encoded bytes, a PIL image, "
        "a numpy array [H, W, C] or a tensor [C, H, W]"
    )


def resize(image: ImageArray, size: tuple[int, int]) -> ImageArray:
    """Resize uint8 [H, W, C] to (height, width), bilinear with antialiasing, by channel."""
    if image.shape[:2] == size:
        return image
    height, width = size
    channels = [
        np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))
        for plane in np.moveaxis(image, 2, 0)
    ]
    return np.stack(channels, axis=2)


def count_megapixels(encoded: bytes) -> float:
    """Size of an encoded image by its header alone; 0 where that cannot be read."""
    try:
        with _open(io.BytesIO(encoded)) as opened:
            return _megapixels(opened)
    except Exception:  # whoever decodes it says what is wrong
        return 0.0


def file_format(encoded: bytes) -> str:
    """What kind of image file this is by its header, as Pillow calls it; "" where none knows it."""
    if encoded.startswith(NPY_MAGIC):
        return NPY
    try:
        with _open(io.BytesIO(encoded)) as opened:
            return opened.format or ""
    except Exception:  # likewise
        return ""


def _open(source: Path | io.BytesIO) -> Image.Image:
    """Read a header. Pillow's limit of pixels is off meanwhile: ours comes next."""
    with _GUARD:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _megapixels(image: Image.Image) -> float:
    return image.width * image.height / 1e6


def _from_file(
    source: Path | io.BytesIO, in_channels: int, max_megapixels: float | None
) -> ImageArray:
    name = "image bytes" if isinstance(source, io.BytesIO) else str(source)
    try:
        encoded = source.read_bytes() if isinstance(source, Path) else source.getvalue()
        with _open(io.BytesIO(encoded)) as opened:
            if max_megapixels is not None and _megapixels(opened) > max_megapixels:
                raise DataError(
                    f"{opened.width} x {opened.height} pixels are {_megapixels(opened):.4g} "
                    f"megapixels, the limit is {max_megapixels:g}: raise max_megapixels "
                    "(predict.max_megapixels in params.yaml), or cut it into smaller images"
                )
            opened.load()
            return _from_pil(upright(opened, encoded), in_channels)
    except FileNotFoundError:
        raise DataError(f"{name} does not exist: check the path") from None
    except IsADirectoryError:
        raise DataError(f"{name} is a folder: give an image file") from None
    except (ShapeError, DataError) as error:
        raise type(error)(f"{name}: {error}") from error
    except UnidentifiedImageError:
        raise DataError(
            f"{name} cannot be read as an image (no known format): replace or remove it"
        ) from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        reason = str(error) or type(error).__name__
        raise DataError(
            f"{name} cannot be read as an image ({reason}): replace or remove it"
        ) from error


def _from_pil(image: Image.Image, in_channels: int) -> ImageArray:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_numpy(to_eight_bit(np.asarray(image)), in_channels)
    mode = PIL_MODES.get(in_channels)
    if mode is None:
        return _from_numpy(np.asarray(image), in_channels)
    return np.array(image if image.mode == mode else image.convert(mode)).reshape(
        image.height, image.width, in_channels
    )


def _tensor_pixels(image: torch.Tensor) -> NDArray[np.generic]:
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3:
        raise ShapeError(f"a tensor image is [C, H, W], got {tuple(image.shape)}")
    image = image.detach().cpu()
    if image.is_floating_point():
        low, high = image.amin().item(), image.amax().item()
        if not (low >= 0.0 and high <= 1.0):
            raise DataError(
                f"a float image has values in 0..1, got {low:.3g}..{high:.3g}: scale it"
            )
        image = (image * 255).round().to(torch.uint8)
    return cast(NDArray[np.generic], image.permute(1, 2, 0).numpy())


def _from_numpy(pixels: NDArray[np.generic], in_channels: int) -> ImageArray:
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise ShapeError(f"an image array is [H, W] or [H, W, C], got {pixels.shape}")
    if pixels.shape[2] in (2, 4) and in_channels in (1, 3):
        pixels = pixels[:, :, :-1]  # alpha, before it takes part in a stretch
    values = _eight_bit(pixels)
    channels = values.shape[2]
    if channels == in_channels:
        return np.ascontiguousarray(values)
    if channels not in (1, 2, 3, 4) or in_channels not in PIL_MODES:
        raise ShapeError(
            f"it has {channels} channels, the model takes {in_channels}: "
            "convert the image, or use a model trained on such images"
        )
    picture = Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)
    return _from_pil(picture, in_channels)


def _eight_bit(pixels: NDArray[np.generic]) -> ImageArray:
    if pixels.dtype == np.uint8:
        return cast(ImageArray, pixels)
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype == np.uint16:
        return to_eight_bit(pixels)
    if np.issubdtype(pixels.dtype, np.integer):
        numbers = pixels.astype(np.int64)
        low, high = int(numbers.min()), int(numbers.max())
        if low >= 0 and high <= 255:
            return numbers.astype(np.uint8)
        raise DataError(
            f"integer pixels lie in {low}..{high}, expected 0..255: use uint8 or uint16"
        )
    raise DataError(f"image arrays are uint8 or uint16, got {pixels.dtype}: scale and convert them")
