"""Upsampling: the rule of each kind, sizes, the checkerboard that each leaves."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.errors import OptionError, ShapeError
from segcore.models.upsampling import (
    INDEXED_UPSAMPLINGS,
    UPSAMPLINGS,
    create_upsample,
    init_bilinear,
)

KINDS = [*UPSAMPLINGS, *INDEXED_UPSAMPLINGS]


def pooled(channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """A positive map after 2 x 2 pooling (partial windows kept), and its indices."""
    whole = torch.rand(2, channels, height, width) + 0.1
    small, indices = F.max_pool2d(whole, 2, ceil_mode=True, return_indices=True)
    return small, indices


def test_bed_of_nails_keeps_the_sum() -> None:
    x = torch.rand(1, 2, 3, 4)
    y = create_upsample("bed_of_nails", 2, 2, scale=3, kernel_size=None)(x)
    assert torch.equal(y[..., ::3, ::3], x)
    torch.testing.assert_close(y.sum(), x.sum())


def test_nearest_repeats() -> None:
    x = torch.rand(1, 2, 3, 4)
    y = create_upsample("nearest", 2, 2, kernel_size=None)(x)
    assert torch.equal(y, x.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("align_corners", [False, True])
def test_bilinear_states_its_corners(align_corners: bool) -> None:
    x = torch.rand(1, 2, 3, 4)
    layer = create_upsample("bilinear", 2, 2, kernel_size=None, align_corners=align_corners)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(layer(x), expected)
    # PSPNet's zoom with aligned corners takes H to 8 (H - 1) + 1.
    if align_corners:
        zoomed = layer(x, size=(17, 25))
        torch.testing.assert_close(zoomed[..., ::8, ::8], x)


def test_max_unpool_undoes_the_pooling() -> None:
    x, indices = pooled(2, 6, 8)
    layer = create_upsample("max_unpool", 2, 2, kernel_size=None)
    y = layer(x, indices)
    torch.testing.assert_close(y.sum(), x.sum())
    assert torch.equal(F.max_pool2d(y, 2), x)
    assert torch.equal(y, F.max_unpool2d(x, indices, 2))
    odd, places = pooled(2, 5, 7)
    assert layer(odd, places, (5, 7)).shape == (2, 2, 5, 7)


def test_max_unpool_needs_indices() -> None:
    layer = create_upsample("max_unpool", 2, 2)
    with pytest.raises(ShapeError, match="got indices None"):
        layer(torch.zeros(1, 2, 3, 3))


def test_pixel_shuffle_places_channels() -> None:
    layer = create_upsample("pixel_shuffle", 4, 1, kernel_size=1)
    with torch.no_grad():
        layer[0].weight.copy_(torch.eye(4).view(4, 4, 1, 1))
        layer[0].bias.zero_()
    x = torch.rand(1, 4, 2, 3)
    y = layer(x)
    for i in range(2):
        for j in range(2):
            assert torch.equal(y[0, 0, i::2, j::2], x[0, 2 * i + j])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [None, (12, 18), (11, 17), (13, 19)])
def test_every_kind_takes_indices_and_size(kind: str, size: tuple[int, int] | None) -> None:
    x = torch.rand(2, 3, 6, 9, requires_grad=True)
    _, indices = pooled(3, *(size or (12, 18))) if size != (13, 19) else pooled(3, 12, 18)
    y = create_upsample(kind, 3, 5, allow_checkerboard=True)(x, indices, size)
    y.sum().backward()
    assert y.shape == (2, 5, *(size or (12, 18)))
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_default_kernels(kind: str) -> None:
    layer = create_upsample(kind, 4, 4, kernel_size=None)
    kernels = [tuple(p.shape[2:]) for p in layer.parameters() if p.dim() == 4]
    expected = {"transposed": [(2, 2)], "resize_conv": [(3, 3)], "pixel_shuffle": [(3, 3)]}
    assert kernels == expected.get(kind, [])
    changed = create_upsample(kind, 4, 2, kernel_size=None)
    _, indices = pooled(4, 6, 6)
    assert changed(torch.rand(2, 4, 3, 3), indices).shape == (2, 2, 6, 6)


def phases(layer: nn.Module, scale: int) -> Tensor:
    """Mean answer to a constant map at each place of the scale x scale block, off the border."""
    x = torch.ones(1, 1, 12, 12)
    whole = x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    indices = F.max_pool2d(whole, scale, return_indices=True)[1]
    with torch.no_grad():
        y = layer(x, indices)[0, 0, 4 * scale : -4 * scale, 4 * scale : -4 * scale]
    return torch.stack([y[i::scale, j::scale].mean() for i in range(scale) for j in range(scale)])


@pytest.mark.parametrize(
    ("kind", "scale", "kernel_size", "energy"),
    [
        # Variance of the phases over their mean square, with all taps equal.
        ("bed_of_nails", 2, None, 0.75),
        ("max_unpool", 2, None, 0.75),
        ("nearest", 2, None, 0.0),
        ("bilinear", 2, None, 0.0),
        ("resize_conv", 2, 3, 0.0),
        ("pixel_shuffle", 2, 3, 0.0),
        ("transposed", 2, 2, 0.0),
        ("transposed", 2, 4, 0.0),
        ("transposed", 4, 8, 0.0),
        # Overlaps 1, 2 a row and column: blocks 1, 2, 2, 4; and 2, 3: blocks 4, 6, 6, 9.
        ("transposed", 2, 3, 1 - (9 / 4) ** 2 / (25 / 4)),
        ("transposed", 2, 5, 1 - (25 / 4) ** 2 / (169 / 4)),
    ],
)
def test_checkerboard_energy(kind: str, scale: int, kernel_size: int | None, energy: float) -> None:
    layer = create_upsample(
        kind, 1, 1, scale=scale, kernel_size=kernel_size, allow_checkerboard=True
    )
    if kind != "pixel_shuffle":
        for parameter in layer.parameters():
            nn.init.constant_(parameter, 1.0 if parameter.dim() == 4 else 0.0)
    answer = phases(layer, scale)
    measured = float(answer.var(correction=0) / answer.square().mean())
    assert measured == pytest.approx(energy, abs=1e-6)


@pytest.mark.parametrize(("scale", "kernel_size"), [(2, 3), (2, 5), (4, 6), (3, 2)])
def test_transposed_refuses_uneven_overlap(scale: int, kernel_size: int) -> None:
    with pytest.raises(OptionError, match="checkerboard"):
        create_upsample("transposed", 2, 2, scale=scale, kernel_size=kernel_size)
    layer = create_upsample(
        "transposed", 2, 2, scale=scale, kernel_size=kernel_size, allow_checkerboard=True
    )
    assert layer(torch.rand(1, 2, 5, 4)).shape == (1, 2, 5 * scale, 4 * scale)


def test_bilinear_kernel_interpolates_a_plane() -> None:
    layer = create_upsample("transposed", 2, 2, kernel_size=4)
    deconv = layer[0]
    assert isinstance(deconv, nn.ConvTranspose2d)
    init_bilinear(deconv)
    assert deconv.bias is not None
    nn.init.zeros_(deconv.bias)
    x = torch.arange(6.0).view(1, 1, 1, 6).expand(1, 2, 6, 6)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2])


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(OptionError, match="resize_conv"):
        create_upsample("sharpen", 1, 1)
