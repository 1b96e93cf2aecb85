"""Features of a box at a fixed size: RoIAlign, RoIPool, RoI warping; from a pyramid's levels.

References: He et al. 2017, arXiv:1703.06870 (RoIAlign); Girshick 2015, arXiv:1504.08083 (RoIPool);
Dai et al. 2016, arXiv:1512.04412 (RoI warping); Lin et al. 2017, arXiv:1612.03144 (levels).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segcore.models.blocks import check_choice
from segcore.models.detection.boxes import box_area

ROI_POOLS = ("align", "pool", "warp")
SAMPLES = 2  # points a bin and axis of RoIAlign
CANONICAL_SIZE_PX, CANONICAL_LEVEL = 224, 4  # an ImageNet-sized box reads stride 2^4


def roi_warp(features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """Bilinear crop at 2 * size, then 2x2 max-pooling; differentiable in the box, too.

    The value at u' of W' positions is sum over u of max(0, 1 - |x + u' w / W' - u|) F(u), the same
    in y; F is 0 outside of the map.

    Args:
        features: [N, C, H, W]
        rois: [R, 5], index of the image and box in image pixels.
        size: side of the result.
        scale: feature size over image size.

    Returns:
        [R, C, size, size]
    """
    height, width = features.shape[2:]
    steps = torch.arange(2 * size, device=rois.device, dtype=rois.dtype) / (2 * size)
    boxes = rois[:, 1:] * scale
    x = boxes[:, :1] + steps * (boxes[:, 2:3] - boxes[:, :1])
    y = boxes[:, 1:2] + steps * (boxes[:, 3:] - boxes[:, 1:2])
    # grid_sample takes the first pixel's centre at -1 + 1 / W.
    x, y = (2 * x + 1) / width - 1, (2 * y + 1) / height - 1
    shape = (len(rois), 2 * size, 2 * size)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)
    features = features.to(rois.dtype)
    index = rois[:, 0].detach().long()
    order = index.argsort(stable=True)
    counts = torch.bincount(index, minlength=len(features)).tolist()
    crops = [features.new_zeros(0, features.shape[1], size, size) + 0 * features.sum()]
    for own, points in zip(features, grid[order].split_with_sizes(counts), strict=True):
        if len(points):
            points = points.reshape(1, -1, 2 * size, 2)
            crop = F.grid_sample(own[None], points, align_corners=False)[0]
            crop = crop.reshape(len(own), -1, 2 * size, 2 * size).transpose(0, 1)
            crops.append(F.max_pool2d(crop, 2))
    return torch.cat(crops)[order.argsort()]


def pool_rois(
    kind: str, features: Tensor, rois: Tensor, size: int, scale: float, *, aligned: bool = True
) -> Tensor:
    """Features of each RoI by one of `ROI_POOLS`, in float32.

    Args:
        kind: "align" (2x2 bilinear samples a bin, averaged), "pool" (quantised, maximum) or "warp".
        features: [N, C, H, W]
        rois: [R, 5], index of the image and box in image pixels.
        size: side of the result.
        scale: feature size over image size.
        aligned: for "align": pixel centres at half integers (False: at integers, as torchvision's
            models have it).

    Returns:
        [R, C, size, size]

    Raises:
        OptionError: unknown kind.
    """
    check_choice("roi_pool", kind, ROI_POOLS)
    if kind == "warp":
        return roi_warp(features.float(), rois, size, scale)
    from torchvision.ops import roi_align, roi_pool

    # The kernels refuse bf16 on the CPU.
    features, rois = features.float(), rois.detach()
    pooled: Tensor
    if kind == "pool":
        pooled = roi_pool(features, rois, size, scale)
    else:
        pooled = roi_align(features, rois, size, scale, SAMPLES, aligned)
    return pooled


def levels_of(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """Index of the pyramid level that a box [R, 4] is read from (eq. 1 of the FPN paper), [R]."""
    side = box_area(boxes.detach()).sqrt()
    level = (CANONICAL_LEVEL + (side / CANONICAL_SIZE_PX).log2() + 1e-6).floor()
    first, last = (round(math.log2(stride)) for stride in (strides[0], strides[-1]))
    return level.clamp(first, last).long() - first


def pool_from_levels(
    kind: str,
    features: Sequence[Tensor],
    strides: Sequence[int],
    rois: Tensor,
    size: int,
    *,
    aligned: bool = True,
) -> tuple[Tensor, Tensor]:
    """`pool_rois` from the level that suits each box.

    The features come level by level. What is computed from those of one RoI is smaller than they
    are, so it is that which goes back into the order of the RoIs.

    Args:
        kind, rois, size, aligned: as `pool_rois`.
        features: [N, C, H, W] of each level, finest first; strides double from one to the next.
        strides: of each level.

    Returns:
        [R, C, size, size], and the int64 index [R] that brings its rows into the order of the RoIs.
    """
    if len(features) == 1:
        pooled = pool_rois(kind, features[0], rois, size, 1 / strides[0], aligned=aligned)
        return pooled, torch.arange(len(rois), device=rois.device)
    level = levels_of(rois[:, 1:], strides)
    order = level.argsort(stable=True)
    counts = torch.bincount(level, minlength=len(strides)).tolist()
    parts = [
        pool_rois(kind, feature, own, size, 1 / stride, aligned=aligned)
        for feature, stride, own in zip(
            features, strides, rois[order].split_with_sizes(counts), strict=True
        )
    ]
    return torch.cat(parts), order.argsort()
