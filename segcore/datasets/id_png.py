"""Id maps: images of which each value, of up to 24 bits, is one object."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segcore.data.codec import read_image
from segcore.errors import DataError

_COLORS = ("RGB", "RGBA", "RGBX")


def read_ids(file: Path) -> NDArray[np.int64]:
    """Read an id map: grey of 1 to 32 bits, a palette's indices, or R + 256 G + 256^2 B.

    Returns:
        int64 [H, W].

    Raises:
        DataError: it is no such image.
    """
    try:
        encoded = file.read_bytes()
    except OSError as error:
        raise DataError(str(error.strerror)) from error
    image = read_image(encoded)
    if image.format == "JPEG":
        raise DataError("JPEG changes ids: export it as PNG")
    if image.mode == "LA":
        image = image.getchannel("L")
    values = np.asarray(image)
    if image.mode in _COLORS:
        colors: NDArray[np.int64] = values[:, :, :3].astype(np.int64) @ np.array([1, 256, 65536])
        return colors
    if values.ndim != 2 or values.dtype.kind not in "biu":
        raise DataError(f"mode {image.mode}: ids are whole numbers, save them as 16-bit PNG")
    ids = values.astype(np.int64)
    if ids.size and ids.min() < 0:
        raise DataError(f"it holds {ids.min()}: ids are 0 (none) and above")
    return ids
