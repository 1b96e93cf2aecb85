"""Ways to enlarge a feature map, behind one signature: layer(x, indices=None, size=None)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_exporting

from segcore.errors import OptionError, ShapeError
from segcore.models.blocks import check_choice, init_subpixels


class Enlarge(nn.Module):
    """A rule without weights that enlarges a map; `Upsample` hands it the indices and the size."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


class BedOfNails(Enlarge):
    """Each value at the upper left of a scale x scale block of zeros.

    Shape:
        x: [N, C, H, W]
        returns: [N, C, scale * H, scale * W], cut or padded with zeros to size; its sum is that
            of x where nothing is cut
    """

    def forward(
        self, x: Tensor, indices: Tensor | None = None, size: Sequence[int] | None = None
    ) -> Tensor:
        n, c, h, w = x.shape
        s = self.scale
        nails = F.pad(x.reshape(n, c, h, 1, w, 1), (0, s - 1, 0, 0, 0, s - 1))
        nails = nails.reshape(n, c, h * s, w * s)
        return nails if size is None else F.pad(nails, (0, size[1] - w * s, 0, size[0] - h * s))


class Resize(Enlarge):
    """Nearest (each value repeated) or bilinear interpolation.

    Shape:
        x: [N, C, H, W]
        returns: [N, C, scale * H, scale * W], or of H and W size
    """

    def __init__(self, scale: int, mode: str, *, align_corners: bool = False) -> None:
        super().__init__(scale)
        self.mode = mode
        self.align_corners = align_corners if mode == "bilinear" else None

    def forward(
        self, x: Tensor, indices: Tensor | None = None, size: Sequence[int] | None = None
    ) -> Tensor:
        wanted = size or (x.shape[2] * self.scale, x.shape[3] * self.scale)
        return F.interpolate(
            x, size=tuple(wanted), mode=self.mode, align_corners=self.align_corners
        )

    def extra_repr(self) -> str:
        return f"scale={self.scale}, mode={self.mode!r}, align_corners={self.align_corners}"


class Unpool(Enlarge):
    """Each value at the place its pooling took it from, zeros elsewhere: needs the indices.

    Shape:
        x: [N, C, H, W]
        indices: int64 [N, C, H, W], as max_pool2d returns them
        returns: [N, C, scale * H, scale * W], or of H and W size, which must be the pooled map's
    """

    def forward(
        self, x: Tensor, indices: Tensor | None = None, size: Sequence[int] | None = None
    ) -> Tensor:
        if indices is None or indices.shape != x.shape:
            given = None if indices is None else tuple(indices.shape)
            raise ShapeError(
                f"max_unpool got indices {given} for x {tuple(x.shape)}: "
                "give those of the pooling, of x's shape"
            )
        return max_unpool(x, indices, size or (x.shape[2] * self.scale, x.shape[3] * self.scale))


class Upsample(nn.Sequential):
    """Layers that enlarge a map, each of these called the same way.

    Args (of a call):
        x: [N, in_channels, H, W]
        indices: of the encoder's max-pooling, for "max_unpool"; others leave them alone.
        size: (H, W) of the result, where it is not scale times x's: the decoder's side of an odd
            size. Interpolations go to it; the others are cut, or continued by their last row.

    Shape:
        returns: [N, out_channels, scale * H, scale * W], or of H and W size
    """

    def forward(
        self, x: Tensor, indices: Tensor | None = None, size: Sequence[int] | None = None
    ) -> Tensor:
        for layer in self:
            x = layer(x, indices, size) if isinstance(layer, Enlarge) else layer(x)
        if size is None or (not is_exporting() and tuple(x.shape[2:]) == tuple(size)):
            return x
        x = x[:, :, : size[0], : size[1]]
        missing = (0, size[1] - x.shape[3], 0, size[0] - x.shape[2])
        any_size = is_exporting()  # what is 0 for one may not be for another
        return F.pad(x, missing, mode="replicate") if any_size or any(missing) else x


def _same_conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.Module:
    before, after = (kernel_size - 1) // 2, kernel_size // 2
    if before == after:
        return nn.Conv2d(in_channels, out_channels, kernel_size, padding=before)
    pad = nn.ZeroPad2d((before, after, before, after))
    return nn.Sequential(pad, nn.Conv2d(in_channels, out_channels, kernel_size))


def _then_conv(rule: nn.Module, i: int, o: int, kernel_size: int | None) -> Upsample:
    """A rule, then a convolution; without a kernel size only what a change of channels needs."""
    if kernel_size is None and i == o:
        return Upsample(rule)
    return Upsample(rule, _same_conv(i, o, kernel_size or 1))


def _nails(i: int, o: int, kernel_size: int | None, scale: int, _: bool) -> Upsample:
    return _then_conv(BedOfNails(scale), i, o, kernel_size)


def _nearest(i: int, o: int, kernel_size: int | None, scale: int, _: bool) -> Upsample:
    return _then_conv(Resize(scale, "nearest"), i, o, kernel_size)


def _bilinear(i: int, o: int, kernel_size: int | None, scale: int, corners: bool) -> Upsample:
    return _then_conv(Resize(scale, "bilinear", align_corners=corners), i, o, kernel_size)


def _unpool(i: int, o: int, kernel_size: int | None, scale: int, _: bool) -> Upsample:
    return _then_conv(Unpool(scale), i, o, kernel_size)


def _resize_conv(i: int, o: int, kernel_size: int | None, scale: int, _: bool) -> Upsample:
    return _then_conv(Resize(scale, "nearest"), i, o, kernel_size or 3)


def _transposed(i: int, o: int, kernel_size: int | None, scale: int, _: bool) -> Upsample:
    kernel_size = kernel_size or scale
    excess = kernel_size - scale
    padding = max(excess + 1, 0) // 2
    return Upsample(
        nn.ConvTranspose2d(
            i, o, kernel_size, scale, padding=padding, output_padding=2 * padding - excess
        )
    )


def _pixel_shuffle(i: int, o: int, kernel_size: int | None, scale: int, _: bool) -> Upsample:
    layer = Upsample(_same_conv(i, o * scale**2, kernel_size or 3), nn.PixelShuffle(scale))
    init_subpixels(layer)
    return layer


UPSAMPLINGS: dict[str, Callable[[int, int, int | None, int, bool], Upsample]] = {
    "bed_of_nails": _nails,
    "nearest": _nearest,
    "bilinear": _bilinear,
    "transposed": _transposed,
    "resize_conv": _resize_conv,
    "pixel_shuffle": _pixel_shuffle,
}
# Kinds that cannot work without the encoder's indices, so no option of every decoder.
INDEXED_UPSAMPLINGS = {"max_unpool": _unpool}


def create_upsample(
    kind: str,
    in_channels: int,
    out_channels: int,
    *,
    scale: int = 2,
    kernel_size: int | None = 3,
    align_corners: bool = False,
    allow_checkerboard: bool = False,
) -> Upsample:
    """A layer that enlarges a feature map: layer(x, indices=None, size=None).

    Args:
        kind: "bed_of_nails", "nearest", "bilinear", "max_unpool" (each followed by a convolution
            where kernel_size says so), "transposed", "resize_conv" (nearest and a convolution) or
            "pixel_shuffle" (a convolution and a shuffle; it starts as nearest, ICNR).
        in_channels: of the input.
        out_channels: of the output.
        scale: factor of H and W.
        kernel_size: of the learned kernel. None: no kernel for the first four (1 x 1 where the
            channels change), scale for "transposed", 3 for the last two.
        align_corners: of "bilinear": True puts the corner pixels' centres on each other (PSPNet,
            Caffe's Interp), False the corners of the maps.
        allow_checkerboard: admit a transposed convolution whose kernel overlaps unevenly.

    Shape:
        x: [N, in_channels, H, W]
        returns: [N, out_channels, scale * H, scale * W], or of H and W size

    Raises:
        OptionError: unknown kind, or a transposed kernel that leaves a checkerboard.
    """
    known = {**UPSAMPLINGS, **INDEXED_UPSAMPLINGS}
    check_choice("upsample", kind, known)
    if kind == "transposed" and (kernel_size or scale) % scale and not allow_checkerboard:
        raise OptionError(
            f"a transposed convolution of kernel {kernel_size} and stride {scale} overlaps "
            f"unevenly (checkerboard): take a multiple of {scale}, or allow_checkerboard=True"
        )
    return known[kind](in_channels, out_channels, kernel_size, scale, align_corners)


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
