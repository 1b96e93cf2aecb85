"""Dense blocks in training without a copy of the stack for every layer.

A layer of a dense block is batch norm, ReLU and a 3x3 convolution over all maps before it. Written
plainly, layer l copies, normalises and keeps l maps, and finds again the mean and variance that the
layer before it has found. Here the block has one buffer into which every layer writes its maps; the
statistics of a map are taken once; what a layer normalised is computed again in the backward pass,
in bands of rows small enough for the processor's cache.

Reference: Pleiss et al. 2017, arXiv:1707.06990, for the buffer and the second computation.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Of the normalised maps of a band: 2 to 8 MiB took about the same time, 1 and 32 MiB more.
BAND_BYTES = 4 * 2**20
PER_LAYER = 4  # tensors: gain and bias of the norm, weight and bias of the convolution


class Band(NamedTuple):
    """Rows top..bottom of an output, and rows low..high that a 3x3 window over them reads."""

    top: int
    bottom: int
    low: int
    high: int

    @property
    def outside(self) -> list[int]:
        """Rows of zeros above and below, in the order of `F.pad`."""
        return [0, 0, int(self.low == self.top), int(self.high == self.bottom)]


@dataclass(frozen=True)
class Plan:
    """What a block is, beside its tensors.

    Args:
        parts: channels of each input.
        growth_rate: channels that a layer adds.
        eps: of each layer's batch norm.
        compute: dtype of the convolutions.
    """

    parts: tuple[int, ...]
    growth_rate: int
    eps: tuple[float, ...]
    compute: torch.dtype

    def before(self, layer: int) -> int:
        """Channels that a layer reads; its own come after them."""
        return sum(self.parts) + layer * self.growth_rate


def grow(
    parts: Sequence[Tensor],
    layers: Sequence[Sequence[Tensor]],
    *,
    masks: Sequence[Tensor],
    eps: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """A dense block with batch statistics: BN, ReLU, 3x3 convolution, dropout in each layer.

    Args:
        parts: the inputs, whose channels come first in the stack.
        layers: gain and bias of the batch norm, weight and bias of the convolution, per layer.
        masks: factor of each new map, [N, growth_rate, 1, 1], per layer.
        eps: of the batch norm, per layer.

    Shape:
        parts: [N, any, H, W]
        returns: the stack, [N, C, H, W]; mean and biased variance of each map, [C]
    """
    device, weight = parts[0].device.type, layers[0][2]
    auto = torch.is_autocast_enabled(device)
    plan = Plan(
        parts=tuple(part.shape[1] for part in parts),
        growth_rate=weight.shape[0],
        eps=tuple(eps),
        compute=torch.get_autocast_dtype(device) if auto else weight.dtype,
    )
    tensors = [tensor for layer in layers for tensor in layer]
    stack, mean, var = GrowingStack.apply(plan, *parts, *masks, *tensors)
    return stack, mean, var


def remember(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, *, count: int) -> None:
    """Move a norm's running averages by the statistics of a batch, as the norm itself does.

    Args:
        norm: of the first maps of a stack.
        mean: of each map.
        var: biased, of each map.
        count: positions of a map in the batch.
    """
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked += 1
    share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    channels = norm.num_features
    norm.running_mean.lerp_(mean[:channels].to(norm.running_mean.dtype), share)
    unbiased = var[:channels] * (count / (count - 1))
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), share)


class GrowingStack(torch.autograd.Function):
    """The computation of `grow`."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Fill the stack layer by layer."""
        parts, own = tensors[: len(plan.parts)], tensors[len(plan.parts) :]
        masks, layers = own[: len(plan.eps)], _layers(own[len(plan.eps) :])
        stack = _empty_stack(plan, parts)
        mean = layers[0][0].new_empty(stack.shape[1], dtype=_exact(stack.dtype))
        var = torch.empty_like(mean)
        known = 0
        with _no_autocast(stack):
            for index, (gain, shift, weight, bias) in enumerate(layers):
                width = plan.before(index)
                var[known:width], mean[known:width] = _statistics(stack[:, known:width])
                known, scale = width, gain * torch.rsqrt(var[:width] + plan.eps[index])
                kernel, offset = weight.to(plan.compute), bias.to(plan.compute)
                new = stack[:, width : width + plan.growth_rate]
                for band in _bands(stack, width):
                    maps = stack[:, :width, band.low : band.high]
                    active = _activate(maps, band, mean[:width], scale, shift, plan.compute)
                    out = F.conv2d(active, kernel, offset, padding=(0, 1))
                    torch.mul(out, masks[index], out=new[:, :, band.top : band.bottom])
            var[known:], mean[known:] = _statistics(stack[:, known:])
        ctx.plan = plan
        ctx.save_for_backward(stack, mean, var, *own)
        ctx.mark_non_differentiable(mean, var)
        return stack, mean, var

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, grad_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """From the last layer to the first, into one buffer of the stack's gradient."""
        plan: Plan = ctx.plan
        stack, mean, var, *rest = ctx.saved_tensors
        count = len(plan.eps)
        masks, layers = rest[:count], _layers(rest[count:])
        grad = torch.empty_like(stack).copy_(grad_out)
        # Batch norm passes on g - level - slope * (x - mean); the sums of all layers are kept.
        level, slope = torch.zeros_like(mean), torch.zeros_like(mean)
        grads: list[tuple[Tensor, ...]] = []
        with _no_autocast(stack):
            for index in reversed(range(count)):
                width = plan.before(index)
                own = slice(width, width + plan.growth_rate)
                new = _settle(grad, stack, own, mean, level, slope)
                new = new.mul_(masks[index]).to(plan.compute)
                std = torch.rsqrt(var[:width] + plan.eps[index])
                sums = _layer_backward(
                    plan, layers[index], (stack, mean[:width], std), new, grad[:, :width]
                )
                gain, total = layers[index][0], stack.numel() / stack.shape[1]
                level[:width] += std * gain * sums[1] / total
                slope[:width] += std * std * gain * sums[0] / total
                grads.insert(
                    0, tuple(g.to(p.dtype) for g, p in zip(sums, layers[index], strict=True))
                )
            first = _settle(grad, stack, slice(0, plan.before(0)), mean, level, slope)
        inputs = torch.split(first.to(stack.dtype), list(plan.parts), dim=1)
        flat = [tensor for layer in grads for tensor in layer]
        return (None, *inputs, *[None] * count, *flat)


def _layer_backward(
    plan: Plan,
    layer: Sequence[Tensor],
    source: tuple[Tensor, Tensor, Tensor],
    new: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of one layer's tensors; adds what ReLU and convolution pass on to `grad`.

    Args:
        plan: of the block.
        layer: gain and bias of the norm, weight and bias of the convolution.
        source: the stack, and mean and 1 / standard deviation of the maps that the layer reads.
        new: gradient of the convolution's output.
        grad: gradient of the maps that the layer reads; changed.
    """
    gain, shift, weight, _ = layer
    stack, mean, std = source
    kernel, scale, width = weight.to(plan.compute), gain * std, mean.numel()
    gain_sum, shift_sum = torch.zeros_like(mean), torch.zeros_like(mean)
    weight_sum = torch.zeros_like(weight, dtype=_exact(weight.dtype))
    for band in _bands(stack, width):
        maps = stack[:, :width, band.low : band.high]
        active = _activate(maps, band, mean, scale, shift, plan.compute)
        passed, kernel_sum, _ = torch.ops.aten.convolution_backward(
            new[:, :, band.top : band.bottom].contiguous(memory_format=torch.channels_last),
            active, kernel, None, [1, 1], [0, 1], [1, 1], False, [0, 0], 1, [True, True, False],
        )  # fmt: skip
        weight_sum += kernel_sum
        torch.ops.aten.threshold_backward.grad_input(passed, active, 0, grad_input=passed)
        passed = passed[:, :, band.outside[2] : passed.shape[2] - band.outside[3]].to(mean.dtype)
        shift_sum += passed.sum((0, 2, 3))
        gain_sum += torch.mul(maps, passed).sum((0, 2, 3))
        grad[:, :, band.low : band.high] += passed.mul_(scale.view(-1, 1, 1))
    gain_sum = (gain_sum - mean * shift_sum) * std
    return gain_sum, shift_sum, weight_sum, new.sum((0, 2, 3), dtype=weight_sum.dtype)


def _layers(tensors: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    return [tensors[start : start + PER_LAYER] for start in range(0, len(tensors), PER_LAYER)]


def _empty_stack(plan: Plan, parts: Sequence[Tensor]) -> Tensor:
    """A channels-last buffer for the whole block, its inputs filled in."""
    batch, _, height, width = parts[0].shape
    dtype = parts[0].dtype
    for part in parts:
        dtype = torch.promote_types(dtype, part.dtype)
    stack = torch.empty(
        (batch, plan.before(len(plan.eps)), height, width),
        dtype=dtype,
        device=parts[0].device,
        memory_format=torch.channels_last,
    )
    start = 0
    for part in parts:
        stack[:, start : start + part.shape[1]] = part
        start += part.shape[1]
    return stack


def _exact(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over a map of `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def _statistics(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Biased variance and mean of maps; `torch.var_mean` was a tenth of a training step."""
    count, exact = maps.numel() / maps.shape[1], _exact(maps.dtype)
    mean = maps.sum((0, 2, 3), dtype=exact) / count
    var = torch.zeros_like(mean)
    for band in _bands(maps, maps.shape[1]):
        rows = maps[:, :, band.top : band.bottom]
        var += torch.sub(rows, mean.view(-1, 1, 1)).square_().sum((0, 2, 3))
    return var / count, mean


def _bands(stack: Tensor, width: int) -> Iterator[Band]:
    """Rows of an image that a layer over `width` maps computes at a time; all on a GPU."""
    height = stack.shape[2]
    rows = height
    if stack.device.type == "cpu":
        row_bytes = stack.shape[0] * stack.shape[3] * width * 4
        rows = max(1, min(height, BAND_BYTES // row_bytes))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        yield Band(top, bottom, max(top - 1, 0), min(bottom + 1, height))


def _activate(
    maps: Tensor, band: Band, mean: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype
) -> Tensor:
    """Maps of a band, normalised and rectified, with rows of zeros outside the image."""
    column = (-1, 1, 1)
    offset = torch.addcmul(shift, mean, scale, value=-1).view(column)
    active = torch.addcmul(offset, maps, scale.view(column)).relu_().to(dtype)
    return F.pad(active, band.outside) if any(band.outside) else active


def _settle(
    grad: Tensor, stack: Tensor, own: slice, mean: Tensor, level: Tensor, slope: Tensor
) -> Tensor:
    """The finished gradient of some maps: what later layers' batch norms subtract is subtracted."""
    column = (-1, 1, 1)
    drift = torch.addcmul(
        (mean * slope - level)[own].view(column), stack[:, own], slope[own].view(column), value=-1
    )
    return drift.add_(grad[:, own])


def _no_autocast(stack: Tensor) -> AbstractContextManager[None]:
    """Dtypes are chosen here, by `Plan.compute`."""
    return torch.autocast(stack.device.type, enabled=False)
