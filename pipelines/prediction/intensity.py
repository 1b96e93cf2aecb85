"""How bright the pixels of an image are, exactly and in little memory."""

import numpy as np
from PIL import Image

from segcore.inference.images import ImageArray

STRIP_PIXELS = 1 << 22


def channel_statistics(image: ImageArray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in 0..1.

    Shape:
        image: uint8 [H, W, C]
    """
    height, width, channels = image.shape
    rows = max(1, STRIP_PIXELS // max(width, 1))
    counts = np.zeros((channels, 256), np.int64)
    for top in range(0, height, rows):
        for channel in range(channels):
            strip = np.ascontiguousarray(image[top : top + rows, :, channel])
            counts[channel] += Image.fromarray(strip).histogram()
    values = np.arange(256) / 255
    share = counts / max(height * width, 1)
    means = share @ values
    variances = np.maximum(share @ values**2 - means**2, 0)
    return tuple(means.tolist()), tuple(np.sqrt(variances).tolist())
