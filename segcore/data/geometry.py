"""Windows, sizes and deformations of images and label maps, each as its tv_tensor type asks for."""

import numpy as np
import torch
from torch import Tensor

Box = tuple[int, int, int, int]


def window(item: Tensor, box: Box, fill: float | list[float]) -> Tensor:
    """Cut (top, left, height, width) out of an item; what is outside of it is filled.

    The rest of a large picture is not touched. Boxes and key points move.
    """
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional as ops

    top, left, height, width = box
    if not isinstance(item, (tv_tensors.Image, tv_tensors.Mask)):
        moved: Tensor = ops.crop(item, top, left, height, width)
        return moved
    kept: Tensor = tv_tensors.wrap(cut(item.as_subclass(Tensor), box, fill), like=item)
    return kept


def cut(pixels: Tensor, box: Box, fill: float | list[float]) -> Tensor:
    """Cut (top, left, height, width) out of pixels [..., H, W]; a view where all of it is inside.

    Args:
        pixels: of an image or a label map.
        box: what is cut out.
        fill: value of what is outside, one or one a channel.
    """
    top, left, height, width = box
    rows = slice(max(0, top), max(0, top, min(pixels.shape[-2], top + height)))
    columns = slice(max(0, left), max(0, left, min(pixels.shape[-1], left + width)))
    part = pixels[..., rows, columns]
    if part.shape[-2:] != (height, width):
        inside, part = part, part.new_empty(*pixels.shape[:-2], height, width)
        colour = torch.tensor(fill, dtype=part.dtype)
        part.copy_(colour.view(-1, 1, 1) if colour.ndim else colour)
        down, right = rows.start - top, columns.start - left
        part[..., down : down + inside.shape[-2], right : right + inside.shape[-1]] = inside
    return part


def resized(item: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize as the type asks for; the operator's own way for masks lies half a pixel off."""
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as ops

    done: Tensor
    if isinstance(item, tv_tensors.Mask):
        planes = item.as_subclass(Tensor)
        planes = planes[None] if item.ndim == 2 else planes
        planes = ops.resize_image(planes, list(size), InterpolationMode.NEAREST_EXACT)
        done = tv_tensors.Mask(planes[0] if item.ndim == 2 else planes)
    else:
        done = ops.resize(item, list(size))
    return done


def displacement(
    size: tuple[int, int], *, alpha: float, sigma: float, rng: np.random.Generator
) -> Tensor:
    """Smooth random field that says where each pixel of the result comes from.

    Args:
        size: (height, width).
        alpha: factor of the smoothed noise, in pixels.
        sigma: of the smoothing, in pixels.
        rng: source of the noise.

    Returns:
        float32 [1, H, W, 2], (x, y) offsets in units in which the image spans -1..1.

    Reference: Simard, Steinkraus, Platt 2003, "Best practices for convolutional neural networks".
    """
    from scipy.ndimage import gaussian_filter

    noise = rng.uniform(-1.0, 1.0, (2, *size)).astype(np.float32)
    offsets = [alpha * gaussian_filter(plane, sigma, mode="constant") for plane in noise]
    units = [offset * 2 / side for offset, side in zip(offsets, size[::-1], strict=True)]
    return torch.from_numpy(np.stack(units, axis=-1)[None])
