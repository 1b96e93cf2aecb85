"""What three architectures or more share: input checks, padding, conv blocks, initialisation."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_exporting

from segcore.errors import OptionError, ShapeError

MIN_SIZE = 32


def check_images(
    x: Tensor, in_channels: int, *, dims: int = 2, min_size: int = MIN_SIZE
) -> tuple[int, ...]:
    """Refuse a batch that a model cannot take; return its spatial size.

    Args:
        x: [N, in_channels, H, W], or [N, in_channels, D, H, W] where dims is 3.
        in_channels: channels that the model was built for.
        dims: number of spatial dimensions.
        min_size: smallest side.

    Raises:
        ShapeError: wrong number of dimensions or channels, or a side below min_size.
    """
    if x.dim() != dims + 2:
        axes = "[N, C, H, W]" if dims == 2 else "[N, C, D, H, W]"
        raise ShapeError(f"images have shape {tuple(x.shape)}: give {axes}")
    if x.shape[1] != in_channels:
        raise ShapeError(
            f"images have {x.shape[1]} channels, the model takes {in_channels}: "
            f"build it with in_channels={x.shape[1]}"
        )
    size = tuple(x.shape[2:])
    if min(size) < min_size:
        raise ShapeError(f"images of size {size} are too small: every side is at least {min_size}")
    return size


def pad_to_multiple(x: Tensor, multiple: int, *, minimum: int = 0) -> Tensor:
    """Pad with zeros behind (right, below) until every side divides by `multiple`.

    Args:
        x: [N, C, *size]
        multiple: the model's total stride.
        minimum: smallest side of the result; two strides keep batch norm defined at batch 1.
    """
    least = math.ceil(minimum / multiple) * multiple
    padding: list[Any] = []
    for side in reversed(x.shape[2:]):
        # Of integers, by sym_max: an exported graph computes it for any size.
        whole = (side + multiple - 1) // multiple * multiple
        padding += [0, torch.sym_max(whole, least) - side]
    return F.pad(x, padding) if is_exporting() or any(padding) else x


def crop_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Cut what `pad_to_multiple` added: keep the first `size` positions of each side."""
    for axis, side in enumerate(size, start=2):
        x = x.narrow(axis, 0, side)
    return x


def reflect_pad(x: Tensor, margin: int) -> Tensor:
    """Mirror [N, C, H, W] outwards by margin on all sides, as often as a small image needs."""
    for axis in (2, 3):
        place = torch.arange(-margin, x.shape[axis] + margin, device=x.device)
        last = place[-1:] - margin
        # There and back again: a triangular wave of period 2 * last.
        x = x.index_select(axis, last - (place % (2 * last) - last).abs())
    return x


def resize(x: Tensor, size: Sequence[int], *, align_corners: bool = False) -> Tensor:
    """Bilinear interpolation of [N, C, h, w] to `size`; the same tensor where it has it."""
    if not is_exporting() and tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=align_corners)


def check_choice(option: str, value: object, known: Iterable[object]) -> None:
    """Refuse a value that an option does not have.

    Raises:
        OptionError: value is not in known.
    """
    known = list(known)
    if value not in known:
        listed = ", ".join(repr(item) for item in known)
        raise OptionError(f"{option} is {value!r}; it can be {listed}")


def make_norm(norm: str | None, channels: int, *, dims: int = 2, eps: float = 1e-5) -> nn.Module:
    """Normalisation layer by name: None (identity), "batch", "group" (32 groups at most) or
    "instance".

    Raises:
        OptionError: unknown name.
    """
    check_choice("norm", norm, (None, "batch", "group", "instance"))
    if norm == "batch":
        return (nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d)(channels, eps=eps)
    if norm == "group":
        return nn.GroupNorm(math.gcd(32, channels), channels, eps=eps)
    if norm == "instance":
        kind = nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d
        return kind(channels, eps=eps, affine=True)
    return nn.Identity()


class ConvNormAct(nn.Sequential):
    """Convolution that keeps the size (at stride 1), batch norm, ReLU.

    Shape:
        x: [N, in_channels, H, W]
        returns: [N, out_channels, ceil(H / stride), ceil(W / stride)]
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        norm: str | None = "batch",
        eps: float = 1e-5,
    ) -> None:
        padding = dilation * (kernel_size // 2)
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=bias)
        ]
        if norm is not None:
            layers.append(make_norm(norm, out_channels, eps=eps))
        super().__init__(*layers, nn.ReLU(inplace=True))


def init_he(module: nn.Module, *, mode: str = "fan_in") -> None:
    """He initialisation of every (transposed) convolution: N(0, sqrt(2 / n)), biases 0.

    n is what one output value sums over ("fan_in", as U-Net writes it) or the kernel area times
    the output channels ("fan_out", as Torch's ResNet does).

    Reference: He et al. 2015, arXiv:1502.01852.
    """
    for layer in module.modules():
        if not isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            continue
        area = math.prod(layer.kernel_size)
        if mode == "fan_out":
            n = area * layer.out_channels / layer.groups
        else:
            n = area * layer.in_channels / layer.groups
            if isinstance(layer, (nn.ConvTranspose2d, nn.ConvTranspose3d)):
                n = max(n / math.prod(layer.stride), 1.0)
        nn.init.normal_(layer.weight, std=math.sqrt(2 / n))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    init_subpixels(module)


def init_subpixels(module: nn.Module) -> None:
    """Start every convolution before a pixel shuffle as nearest upsampling of one kernel.

    Reference: Aitken et al. 2017 (ICNR), arXiv:1707.02937.
    """
    for pair in module.modules():
        if not isinstance(pair, nn.Sequential) or len(pair) != 2:
            continue
        if not isinstance(pair[1], nn.PixelShuffle):
            continue
        repeats = pair[1].upscale_factor ** 2
        for parameter in pair[0].parameters():
            kernels = parameter.detach()[::repeats].repeat_interleave(repeats, dim=0)
            parameter.data.copy_(kernels)
