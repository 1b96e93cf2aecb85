"""Batches at half of their size: progressive resizing (Tan & Le 2021, arXiv:2104.00298, sec. 4)."""

import torch
from torch import Tensor
from torch.nn import functional


def halve_images(images: Tensor) -> Tensor:
    """The mean of each four pixels; of an odd side, the last ones of what there is.

    Shape:
        images: [N, C, H, W] uint8 or float, as it is returned, in the same memory layout
        returns: [N, C, ceil(H / 2), ceil(W / 2)]
    """
    means = functional.avg_pool2d(images.float(), 2, ceil_mode=True, count_include_pad=False)
    return means if images.is_floating_point() else means.round_().to(images.dtype)


def halve_targets(targets: Tensor) -> Tensor:
    """Every other pixel: a class index has no mean.

    Shape:
        targets: [N, H, W]
        returns: [N, ceil(H / 2), ceil(W / 2)]
    """
    return targets[:, ::2, ::2].contiguous(memory_format=torch.contiguous_format)
