"""What makes each system that system: sizes, places, equivalences, weights that carry over."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.encoders.caffe import vgg_trunk
from segcore.errors import OptionError, ShapeError
from segcore.models import create_model
from segcore.models.blocks import init_he
from segcore.models.upsampling import (
    UPSAMPLINGS,
    bilinear_kernel,
    create_upsample,
    init_bilinear,
    max_unpool,
)


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def outputs_of(model: nn.Module, kind: type[nn.Module], x: Tensor) -> list[tuple[int, ...]]:
    """Spatial output sizes of every layer of a kind, in order of use."""
    sizes: list[tuple[int, ...]] = []

    def note(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        sizes.append(tuple(tensor.shape[2:]))

    for layer in model.modules():
        if isinstance(layer, kind):
            layer.register_forward_hook(note)
    model.eval()(x)
    return sizes


# Upsampling


@pytest.mark.parametrize(("size", "peak"), [(4, 0.5625), (16, 0.8789), (32, 0.9385), (64, 0.9690)])
def test_bilinear_kernel_has_the_released_values(size: int, peak: float) -> None:
    kernel = bilinear_kernel(size)
    assert kernel.sum().item() == pytest.approx(size**2 / 4)
    assert kernel.max().item() == pytest.approx(peak, abs=1e-4)


@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (16, 8), (32, 16), (64, 32)])
def test_bilinear_deconvolution_reproduces_a_ramp(kernel: int, stride: int) -> None:
    deconv = nn.ConvTranspose2d(2, 2, kernel, stride, bias=False).double()
    init_bilinear(deconv)
    ramp = torch.arange(8, dtype=torch.float64)
    x = torch.stack([3 * ramp[:, None] + ramp, 1 - ramp[:, None] + 0 * ramp])[None]
    y = deconv(x)[..., kernel:-kernel, kernel:-kernel]
    # A linear ramp has a constant slope, 1 / stride of its own, in each channel by itself.
    slopes = torch.tensor([[3.0, 1.0], [-1.0, 0.0]], dtype=torch.float64) / stride
    for channel in range(2):
        down, right = y[0, channel].diff(dim=0), y[0, channel].diff(dim=1)
        torch.testing.assert_close(down, slopes[channel, 0].expand_as(down))
        torch.testing.assert_close(right, slopes[channel, 1].expand_as(right))


def test_max_unpool_puts_values_at_the_recorded_places() -> None:
    x = torch.tensor([[1.0, 9, 2], [3, 4, 8], [7, 5, 6]])[None, None]
    pooled, places = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
    expected = torch.tensor([[0.0, 9, 0], [0, 0, 8], [7, 0, 6]])[None, None]
    assert torch.equal(max_unpool(pooled, places, (3, 3)), expected)
    y = torch.rand(2, 3, 10, 14)
    pooled, places = F.max_pool2d(y, 2, return_indices=True)
    back = max_unpool(pooled, places, (10, 14))
    assert torch.equal(F.max_pool2d(back, 2), pooled)
    assert torch.equal(back, F.max_unpool2d(pooled, places, 2))


@pytest.mark.parametrize("kind", UPSAMPLINGS)
def test_every_upsampling_doubles_any_size(kind: str) -> None:
    for scale, kernel in ((2, 2), (2, 4), (2, 3), (4, 4), (1, 3)):
        layer = create_upsample(
            kind, 3, 5, scale=scale, kernel_size=kernel, allow_checkerboard=True
        )
        assert layer(torch.randn(1, 3, 7, 6)).shape == (1, 5, 7 * scale, 6 * scale)


def checkerboard_energy(layer: nn.Module) -> float:
    """Variance over mean square of the answer to a constant map, away from the border."""
    with torch.no_grad():
        y = layer(torch.ones(1, 4, 12, 12))[..., 6:-6, 6:-6]
    return float(y.var() / y.square().mean())


@pytest.mark.parametrize(
    ("kind", "kernel", "even"),
    [
        ("nearest", 3, True),
        ("bilinear", 3, True),
        ("pixel_shuffle", 3, True),
        ("transposed", 2, True),
        ("transposed", 4, True),
        ("transposed", 3, False),
        ("bed_of_nails", 3, False),
    ],
)
def test_checkerboard_energy(kind: str, kernel: int, even: bool) -> None:
    torch.manual_seed(0)
    layer = create_upsample(kind, 4, 1, kernel_size=kernel, allow_checkerboard=True)
    if kind in ("transposed", "bed_of_nails"):
        # Equal taps leave only what the overlap of the kernels does.
        for parameter in layer.parameters():
            nn.init.constant_(parameter, 1.0 if parameter.dim() == 4 else 0.0)
    energy = checkerboard_energy(layer)
    assert energy < 1e-10 if even else energy > 0.05


def test_transposed_convolution_refuses_a_checkerboard() -> None:
    with pytest.raises(OptionError, match="checkerboard"):
        create_upsample("transposed", 4, 1, kernel_size=3)


def test_he_initialisation_keeps_subpixels_equal() -> None:
    layer = create_upsample("pixel_shuffle", 4, 2, kernel_size=3)
    init_he(layer)
    y = layer(torch.randn(1, 4, 5, 6))
    assert torch.equal(y[..., ::2, ::2], y[..., 1::2, 1::2])


# U-Net


def test_unet_has_23_convolutions_and_the_papers_parameters() -> None:
    model = create_model("unet", num_classes=2, in_channels=1, padding="valid")
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    assert sum(isinstance(layer, kinds) for layer in model.modules()) == 23
    assert sum(p.numel() for p in model.parameters()) == 31_030_658
    normed = create_model("unet", num_classes=11, norm="batch")
    assert sum(p.numel() for p in normed.parameters()) == 31_044_171
    small = create_model("unet", num_classes=11, base_channels=32)
    assert sum(p.numel() for p in small.parameters()) == 7_760_427


@pytest.mark.parametrize(("side", "expected"), [(188, 4), (204, 20), (572, 388)])
def test_unet_valid_sizes(side: int, expected: int) -> None:
    model = create_model("unet", num_classes=2, padding="valid", base_channels=2)
    with torch.no_grad():
        assert model(torch.randn(1, 3, side, 204))["out"].shape == (1, 2, expected, 20)


def test_unet_valid_refuses_sizes_between() -> None:
    model = create_model("unet", num_classes=2, padding="valid", base_channels=2)
    with pytest.raises(ShapeError, match=r"188 \+ 16 k; mirror 190 up to 204"):
        model(torch.randn(1, 3, 188, 190))


@pytest.mark.parametrize(("offset", "equal"), [(2, True), (18, True), (3, False), (8, False)])
def test_unet_valid_equals_same_inside(float64: None, offset: int, equal: bool) -> None:
    torch.manual_seed(0)
    same = create_model("unet", num_classes=2, base_channels=4).eval()
    valid = create_model("unet", num_classes=2, base_channels=4, padding="valid").eval()
    valid.load_state_dict(same.state_dict())
    x = torch.randn(1, 3, 240, 240)
    with torch.no_grad():
        tile = valid(x[..., offset : offset + 204, offset : offset + 204])["out"]
        inside = slice(offset + 92, offset + 112)
        difference = (same(x)["out"][..., inside, inside] - tile).abs().max()
    assert (difference < 1e-12) == equal


def test_unet_initialisation_is_he() -> None:
    torch.manual_seed(0)
    model = create_model("unet", num_classes=2)
    weight = model.down[1][0].weight  # type: ignore[index, union-attr]
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "reflect"},
        {"norm": "group"},
        {"upsample": "bilinear"},
        {"upsample": "pixel_shuffle"},
        {"backbone": "mobilenet_v3_small", "norm": "batch"},
        {"backbone": "vgg11_bn"},
        {"backbone": "alexnet"},
    ],
    ids=str,
)
def test_unet_options_keep_the_size(options: dict[str, str]) -> None:
    model = create_model("unet", num_classes=2, base_channels=8, **options)
    assert model(torch.randn(1, 3, 40, 51))["out"].shape == (1, 2, 40, 51)


def test_unet_refuses_contradictions() -> None:
    for options in ({"padding": "mirror"}, {"norm": "layer"}, {"upsample": "magic"},
                    {"backbone": "resnet18", "padding": "valid"}, {"dropout": 1.5}):  # fmt: skip
        with pytest.raises(OptionError):
            create_model("unet", num_classes=2, base_channels=4, **options)
    with pytest.raises(OptionError, match="backbone"):
        create_model("unet", num_classes=2, pretrained=True)


# SegNet


def test_segnet_sizes_at_camvid() -> None:
    with torch.device("meta"):
        model = create_model("segnet", num_classes=11)
        x = torch.empty(1, 3, 360, 480)
    expected = [(180, 240), (90, 120), (45, 60), (23, 30), (12, 15)]
    assert outputs_of(model, nn.MaxPool2d, x) == expected
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()) == 25


def test_segnet_decoder_sees_values_only_at_the_pooled_places() -> None:
    torch.manual_seed(0)
    model = create_model("segnet", num_classes=2).eval()
    pools = [layer for layer in model.modules() if isinstance(layer, nn.MaxPool2d)]
    places: list[Tensor] = []
    inputs: list[Tensor] = []
    pools[-1].register_forward_hook(lambda _m, _i, output: places.append(output[1]))
    model.decoders[0].register_forward_hook(  # type: ignore[index, union-attr]
        lambda _m, given, _o: inputs.append(given[0])
    )
    with torch.no_grad():
        model(torch.randn(1, 3, 72, 104))
    kept = torch.zeros(1, 512, inputs[0].shape[2] * inputs[0].shape[3])
    kept.scatter_(2, places[0].flatten(2), 1.0)
    assert inputs[0].flatten(2)[kept == 0].abs().sum() == 0
    assert inputs[0].flatten(2)[kept == 1].abs().sum() > 0


def test_segnet_batch_norm_starts_as_released() -> None:
    model = create_model("segnet_basic", num_classes=2)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert all((layer.bias == 0.001).all() and (layer.weight == 1).all() for layer in norms)
    assert not any(isinstance(m, nn.ReLU) for m in model.decoders.modules())  # type: ignore[union-attr]


# FCN


def test_fcn_sizes_at_500() -> None:
    with torch.device("meta"):
        model = create_model("fcn8s", num_classes=21)
        x = torch.empty(1, 3, 500, 500)
    assert outputs_of(model, nn.MaxPool2d, x) == [(s, s) for s in (349, 175, 88, 44, 22)]
    assert outputs_of(model, nn.ConvTranspose2d, x) == [(s, s) for s in (34, 70, 568)]
    for name, sizes in (("fcn32s", [544]), ("fcn16s", [34, 560])):
        with torch.device("meta"):
            coarse = create_model(name, num_classes=21)
        assert outputs_of(coarse, nn.ConvTranspose2d, x) == [(s, s) for s in sizes]


def test_fcn_has_the_papers_parameters_over_caffenet() -> None:
    with torch.device("meta"):
        for num_classes, expected in ((21, 58_704_590), (11, 57_393_540)):
            model = create_model("fcn32s", num_classes=num_classes, backbone="alexnet")
            assert sum(p.numel() for p in model.parameters()) == expected


def test_fcn_has_the_papers_parameters_over_googlenet() -> None:
    with torch.device("meta"):
        model = create_model("fcn32s", num_classes=21, backbone="googlenet")
    assert sum(p.numel() for p in model.parameters()) == 7_801_413
    before_deconvolution = [p for name, p in model.named_parameters() if "upscore" not in name]
    assert sum(p.numel() for p in before_deconvolution) == 5_995_077
    with pytest.raises(OptionError, match="no weights for 'googlenet_caffe'"):
        create_model("fcn32s", num_classes=21, backbone="googlenet", pretrained=True)


def test_fcn_weights_carry_over_from_coarse_to_fine(tmp_path: Path) -> None:
    options = {"num_classes": 3, "backbone": "resnet18"}
    torch.manual_seed(0)
    coarse = create_model("fcn32s", **options)  # type: ignore[arg-type]
    nn.init.normal_(coarse.score.weight)  # type: ignore[arg-type, union-attr]
    torch.save(coarse.state_dict(), tmp_path / "32s.pt")
    middle = create_model("fcn16s", pretrained=tmp_path / "32s.pt", **options)  # type: ignore[arg-type]
    nn.init.normal_(middle.score_skips["stride16"].weight)  # type: ignore[index, union-attr]
    torch.save(middle.state_dict(), tmp_path / "16s.pt")
    fine = create_model("fcn8s", pretrained=tmp_path / "16s.pt", **options)  # type: ignore[arg-type]
    for key, value in middle.state_dict().items():
        if not key.startswith("upscore_out"):
            assert torch.equal(fine.state_dict()[key], value), key
    # New scores are zero: the finer network starts as the coarser one, interpolated in two steps.
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        fine.score_skips["stride16"].weight.zero_()  # type: ignore[index, union-attr]
        before, start = coarse.eval()(x)["out"], fine.eval()(x)["out"]
    assert torch.corrcoef(torch.stack([before.flatten(), start.flatten()]))[0, 1] > 0.9


def test_fcn_vgg_names_carry_over() -> None:
    with torch.device("meta"):
        coarse, fine = (
            set(create_model(n, num_classes=2).state_dict()) for n in ("fcn32s", "fcn8s")
        )
    assert {key for key in coarse - fine if not key.startswith("upscore_out")} == set()


def test_fcn_fixed_deconvolutions_do_not_train() -> None:
    model = create_model("fcn16s", num_classes=2, backbone="resnet18", deconv="fixed")
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"upscores.stride16.weight", "upscore_out.stride16.weight"}


@pytest.mark.slow
def test_fcn_fc6_is_the_classifier_read_as_convolution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    theirs = torchvision.models.vgg16().eval()
    file = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    file.parent.mkdir(parents=True)
    torch.save(theirs.state_dict(), file)
    network = vgg_trunk("vgg16", 3, pretrained=True).eval()
    network.layers[0].padding = (1, 1)  # type: ignore[union-attr]
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = theirs.classifier[:5](theirs.features(x).flatten(1))
        torch.testing.assert_close(network(x)[-1].flatten(1), expected)


# LinkNet, ENet


def test_linknet_takes_other_encoders_and_upsamplings() -> None:
    for options in ({"backbone": "mobilenet_v2"}, {"upsample": "nearest"}):
        model = create_model("linknet", num_classes=2, **options)
        assert model(torch.randn(1, 3, 40, 70))["out"].shape == (1, 2, 40, 70)
    with pytest.raises(OptionError, match="strides"):
        create_model("linknet", num_classes=2, backbone="vgg11")


def test_enet_encoder_has_the_authors_parameters() -> None:
    model = create_model("enet", num_classes=12)
    names = ("initial", "stage1", "stage2", "stage3")
    parts = [p for name in names for p in getattr(model, name).parameters()]
    assert sum(p.numel() for p in parts) == 338_156


def test_enet_sees_wide_context() -> None:
    """The encoder's dilations reach far: a gradient footprint of hundreds of pixels."""
    torch.manual_seed(0)
    model = create_model("enet", num_classes=1).eval()
    x = torch.randn(1, 3, 256, 256, requires_grad=True)
    model(x)["out"][0, 0, 128, 128].backward()
    assert x.grad is not None
    touched = x.grad[0].abs().sum(0).nonzero()
    assert int((touched.max(0).values - touched.min(0).values).min()) > 200
