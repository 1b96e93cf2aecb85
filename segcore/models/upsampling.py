"""Ways to enlarge a feature map, behind one signature.

Max-unpooling, which needs the encoder's indices, is the function `max_unpool`.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.errors import OptionError
from segcore.models.blocks import check_choice, init_subpixels


class BedOfNails(nn.Module):
    """Each value at the upper left of a scale x scale block of zeros.

    Shape:
        x: [N, C, H, W]
        returns: [N, C, scale * H, scale * W]; its sum is that of x
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        s = self.scale
        nails = F.pad(x.reshape(n, c, h, 1, w, 1), (0, s - 1, 0, 0, 0, s - 1))
        return nails.reshape(n, c, h * s, w * s)


def _same_conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.Module:
    before, after = (kernel_size - 1) // 2, kernel_size // 2
    if before == after:
        return nn.Conv2d(in_channels, out_channels, kernel_size, padding=before)
    pad = nn.ZeroPad2d((before, after, before, after))
    return nn.Sequential(pad, nn.Conv2d(in_channels, out_channels, kernel_size))


def _fixed(resize: nn.Module, in_channels: int, out_channels: int, kernel_size: int) -> nn.Module:
    return nn.Sequential(resize, _same_conv(in_channels, out_channels, kernel_size))


def _nails(i: int, o: int, kernel_size: int, scale: int) -> nn.Module:
    return _fixed(BedOfNails(scale), i, o, kernel_size)


def _nearest(i: int, o: int, kernel_size: int, scale: int) -> nn.Module:
    return _fixed(nn.Upsample(scale_factor=scale, mode="nearest"), i, o, kernel_size)


def _bilinear(i: int, o: int, kernel_size: int, scale: int) -> nn.Module:
    bilinear = nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=False)
    return _fixed(bilinear, i, o, kernel_size)


def _transposed(i: int, o: int, kernel_size: int, scale: int) -> nn.Module:
    excess = kernel_size - scale
    return nn.ConvTranspose2d(
        i, o, kernel_size, scale, padding=(excess + 1) // 2, output_padding=excess % 2
    )


def _pixel_shuffle(i: int, o: int, kernel_size: int, scale: int) -> nn.Module:
    layer = nn.Sequential(_same_conv(i, o * scale**2, kernel_size), nn.PixelShuffle(scale))
    init_subpixels(layer)
    return layer


UPSAMPLINGS: dict[str, Callable[[int, int, int, int], nn.Module]] = {
    "bed_of_nails": _nails,
    "nearest": _nearest,
    "bilinear": _bilinear,
    "transposed": _transposed,
    "pixel_shuffle": _pixel_shuffle,
}


def create_upsample(
    kind: str,
    in_channels: int,
    out_channels: int,
    *,
    scale: int = 2,
    kernel_size: int = 3,
    allow_checkerboard: bool = False,
) -> nn.Module:
    """A module that enlarges a feature map and maps its channels by a learned kernel.

    Args:
        kind: "bed_of_nails", "nearest", "bilinear" (each followed by a convolution, that is a
            resize-convolution), "transposed" or "pixel_shuffle".
        in_channels: of the input.
        out_channels: of the output.
        scale: factor of H and W.
        kernel_size: of the learned kernel.
        allow_checkerboard: admit a transposed convolution whose kernel overlaps unevenly.

    Shape:
        x: [N, in_channels, H, W]
        returns: [N, out_channels, scale * H, scale * W]

    Raises:
        OptionError: unknown kind, or a transposed kernel that leaves a checkerboard.
    """
    check_choice("upsample", kind, UPSAMPLINGS)
    if kind == "transposed" and kernel_size % scale and not allow_checkerboard:
        raise OptionError(
            f"a transposed convolution of kernel {kernel_size} and stride {scale} overlaps "
            f"unevenly (checkerboard): take a multiple of {scale}, or allow_checkerboard=True"
        )
    return UPSAMPLINGS[kind](in_channels, out_channels, kernel_size, scale)


class UpsampleNormAct(nn.Sequential):
    """`create_upsample` with a 3x3 kernel, batch norm, ReLU.

    Shape:
        x: [N, in_channels, H, W]
        returns: [N, out_channels, scale * H, scale * W]
    """

    def __init__(
        self,
        kind: str,
        in_channels: int,
        out_channels: int,
        *,
        scale: int = 2,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(
            create_upsample(
                kind, in_channels, out_channels, scale=scale, kernel_size=3, allow_checkerboard=True
            ),
            nn.BatchNorm2d(out_channels, eps=eps),
            nn.ReLU(inplace=True),
        )


def max_unpool(x: Tensor, indices: Tensor, size: Sequence[int]) -> Tensor:
    """Put each value of x at the place its pooling took it from, zeros elsewhere.

    Args:
        x: [N, C, h, w]
        indices: int64 [N, C, h, w], flat places in the H x W map, as max_pool2d returns them.
        size: (H, W) of the result.

    Reference: Zeiler & Fergus 2014, arXiv:1311.2901.
    """
    n, c = x.shape[:2]
    flat = x.new_zeros(n, c, size[0] * size[1])
    return flat.scatter(2, indices.flatten(2), x.flatten(2)).reshape(n, c, size[0], size[1])


def bilinear_kernel(size: int) -> Tensor:
    """Weights [size, size] of a transposed convolution that interpolates bilinearly.

    Reference: Long, Shelhamer & Darrell 2015, arXiv:1411.4038 (surgery.py of the release).
    """
    factor = (size + 1) // 2
    center = factor - 1 if size % 2 else factor - 0.5
    line = 1 - (torch.arange(size) - center).abs() / factor
    return line[:, None] * line[None, :]


def init_bilinear(deconv: nn.ConvTranspose2d) -> None:
    """Make a dense transposed convolution interpolate each channel bilinearly by itself."""
    weight = torch.zeros_like(deconv.weight)
    channels = torch.arange(min(deconv.in_channels, deconv.out_channels))
    weight[channels, channels] = bilinear_kernel(deconv.kernel_size[0]).to(weight)
    with torch.no_grad():
        deconv.weight.copy_(weight)
