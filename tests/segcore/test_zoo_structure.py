"""What makes each of the larger zoo's systems that system: widths, sizes, places, footprints."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.models import create_model
from segcore.models.blocks import reflect_pad
from segcore.models.semantic import deconvnet, sliding_window
from segcore.models.semantic.dilated import CONTEXT_WIDTHS, ContextModule
from segcore.models.semantic.fc_densenet import DenseBlock
from segcore.models.semantic.pspnet import PyramidPooling


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def on_meta(name: str, *, num_classes: int = 21, **options: object) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, num_classes=num_classes, **options)  # type: ignore[arg-type]


def count(name: str, **options: object) -> int:
    return sum(p.numel() for p in on_meta(name, **options).parameters())  # type: ignore[arg-type]


def run_on_meta(model: nn.Module, *size: int, channels: int = 3) -> dict[str, Tensor]:
    maps: dict[str, Tensor] = model(torch.empty(1, channels, *size, device="meta"))
    return maps


def shapes_of(layers: Iterator[nn.Module] | list[nn.Module]) -> list[tuple[int, ...]]:
    """A list that fills with [C, *size] of each layer's output as the layers are run."""
    shapes: list[tuple[int, ...]] = []
    for layer in layers:
        layer.register_forward_hook(lambda _m, _i, y: shapes.append(tuple(y.shape[1:])))
    return shapes


def extent(model: nn.Module, size: int, channels: int) -> tuple[int, int]:
    """Height and width of the gradient footprint of the centre pixel."""
    x = torch.rand(1, channels, size, size, requires_grad=True)
    y = model(x)
    y = y["out"] if isinstance(y, dict) else y
    y[0, :, size // 2, size // 2].sum().backward()
    assert x.grad is not None
    touched = x.grad[0].abs().sum(0).nonzero()
    height, width = (touched.max(0).values - touched.min(0).values + 1).tolist()
    return height, width


def make_positive(model: nn.Module) -> nn.Module:
    """Weights that cannot cancel each other, so that the footprint is all that is read."""
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.01, 0.02)
    return model


# FC-DenseNet


@pytest.mark.parametrize(
    ("name", "stacks", "passed_up"),
    [
        (
            "fc_densenet103",
            [112, 192, 304, 464, 656, 896, 1088, 816, 576, 384, 256],
            [240, 192, 160, 112, 80],
        ),
        (
            "fc_densenet56",
            [96, 144, 192, 240, 288, 336, 384, 336, 288, 240, 192],
            [48, 48, 48, 48, 48],
        ),
    ],
)
def test_fc_densenet_channels_at_each_level(
    name: str, stacks: list[int], passed_up: list[int]
) -> None:
    model = on_meta(name)
    seen: list[int] = []
    enlarged: list[int] = []
    for block in model.modules():
        if isinstance(block, DenseBlock):
            block.register_forward_hook(lambda _m, _x, y: seen.append(y.shape[1]))
    for transition in model.transitions_up:  # type: ignore[union-attr]
        transition.register_forward_hook(lambda _m, x, _y: enlarged.append(x[0].shape[1]))
    first = shapes_of([model.first])  # type: ignore[list-item]
    run_on_meta(model.eval(), 96, 96)
    assert first[0][0] == 48
    assert seen == stacks
    assert enlarged == passed_up
    assert model.classifier.in_channels == stacks[-1]  # type: ignore[union-attr]


# PSPNet


def test_pyramid_pools_see_the_whole_image() -> None:
    pyramid = PyramidPooling(8).eval()
    for conv in pyramid.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.ones_(conv.weight)  # no ReLU closes
    x = torch.rand(1, 8, 24, 24, requires_grad=True)
    y = pyramid(x)
    (far,) = torch.autograd.grad(y[0, 8:, 0, 0].sum(), x, retain_graph=True)
    assert far[0, :, -1, -1].abs().sum() > 0
    (near,) = torch.autograd.grad(y[0, :8, 0, 0].sum(), x)
    assert near[0, :, -1, -1].abs().sum() == 0


def test_pspnet_bins_and_auxiliary_output() -> None:
    model = on_meta("pspnet")
    pools = shapes_of([m for m in model.modules() if isinstance(m, nn.AdaptiveAvgPool2d)])
    assert set(run_on_meta(model.eval(), 97, 65)) == {"out"}
    assert pools == [(2048, side, side) for side in (1, 2, 3, 6)]
    maps = run_on_meta(model.train(), 97, 65)
    assert {key: y.shape[2:] for key, y in maps.items()} == {"out": (97, 65), "aux": (97, 65)}
    assert set(run_on_meta(on_meta("pspnet", aux=False).train(), 97, 65)) == {"out"}
    assert count("pspnet", aux=False) == 46_716_373
    assert count("pspnet", aux=False, backbone="resnet101_deep") == 65_708_501


def test_pspnet_keeps_stride_8() -> None:
    model = on_meta("pspnet")
    deep = shapes_of([model.pyramid])  # type: ignore[list-item]
    run_on_meta(model.eval(), 473, 713)
    assert deep == [(4096, 60, 90)]


# Dilation


def test_context_module_sees_67_pixels() -> None:
    context = make_positive(ContextModule(2, CONTEXT_WIDTHS["basic"]))
    assert extent(context, 75, 2) == (67, 67)


@pytest.mark.parametrize("context", CONTEXT_WIDTHS)
def test_context_module_starts_as_identity(context: str) -> None:
    module = ContextModule(3, CONTEXT_WIDTHS[context], noise=0.0)
    x = torch.rand(2, 3, 9, 12)
    torch.testing.assert_close(module(x), x)


def test_dilated_front_end_and_variants() -> None:
    assert count("dilated", num_classes=11, context=None) == 134_305_611
    assert count("dilated", context="large") == 141_149_720
    model = on_meta("dilated", num_classes=11)
    front = shapes_of([model.front])  # type: ignore[list-item]
    # 900 with its margin of 186 on both sides included is the released crop: 900 to 66.
    run_on_meta(model.eval(), 900 - 2 * 186, 900 - 2 * 186)
    assert front == [(11, 66, 66)]


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_conv_stack_footprint(depth: int) -> None:
    model = make_positive(create_model("conv_stack", num_classes=2, depth=depth, width=3))
    assert extent(model, 40, 3) == (2 * depth + 1, 2 * depth + 1)


def test_deeplab_keeps_stride_8_and_looks_12_apart() -> None:
    model = on_meta("deeplab_largefov")
    trunk, head = shapes_of([model.trunk]), shapes_of([model.head])  # type: ignore[list-item]
    assert run_on_meta(model.eval(), 321, 321)["out"].shape[2:] == (321, 321)
    assert trunk == [(512, 41, 41)]
    assert head == [(21, 41, 41)]
    fc6 = model.head.fc6  # type: ignore[union-attr]
    assert (fc6.kernel_size, fc6.dilation) == ((3, 3), (12, 12))


# DeconvNet


def test_deconvnet_geometry_of_one_window() -> None:
    model = on_meta("deconvnet").eval()
    encoder = shapes_of(model.encoder)  # type: ignore[arg-type]
    bottleneck = shapes_of(model.bottleneck)  # type: ignore[arg-type]
    decoder = shapes_of(model.decoder)  # type: ignore[arg-type]
    run_on_meta(model, 224, 224)
    assert [shape[-1] for shape in encoder] == [224, 112, 56, 28, 14]
    assert bottleneck == [(4096, 1, 1), (4096, 1, 1), (512, 7, 7)]
    assert decoder == [
        (512, 14, 14), (256, 28, 28), (128, 56, 56), (64, 112, 112), (64, 224, 224)
    ]  # fmt: skip


def test_deconvnet_unpools_to_the_recorded_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deconvnet, "FC_CHANNELS", 16)
    torch.manual_seed(0)
    model = create_model("deconvnet", num_classes=2).eval()
    encoded: list[Tensor] = []
    unpooled: list[Tensor] = []
    model.encoder[-1].register_forward_hook(lambda _m, _x, y: encoded.append(y))  # type: ignore[index, union-attr]
    model.decoder[0].register_forward_hook(lambda _m, x, _y: unpooled.append(x[0]))  # type: ignore[index, union-attr]
    with torch.no_grad():
        model(torch.randn(1, 3, 224, 224))
    _, places = F.max_pool2d(encoded[0], 2, return_indices=True)
    kept = torch.zeros_like(unpooled[0]).flatten(2).scatter(2, places.flatten(2), 1.0) > 0
    assert unpooled[0].flatten(2)[~kept].abs().sum() == 0
    assert unpooled[0].flatten(2)[kept].abs().sum() > 0


# G-FRNet, RefineNet


def test_gfrnet_refines_six_label_maps() -> None:
    model = on_meta("gfrnet", num_classes=11)
    labels = shapes_of([model.coarse, *model.refine])  # type: ignore[list-item, misc]
    maps = run_on_meta(model.train(), 360, 480)
    sizes = [(12, 15), (23, 30), (45, 60), (90, 120), (180, 240), (360, 480)]
    assert labels == [(11, *size) for size in sizes]
    assert sorted(maps) == ["aux1", "aux2", "aux3", "aux4", "aux5", "out"]
    assert {y.shape[1:] for y in maps.values()} == {(11, 360, 480)}
    assert set(run_on_meta(model.eval(), 360, 480)) == {"out"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"pool_stages": 2}, 109_794_901),
        ({"backbone": "resnet50"}, 99_060_309),
        ({"backbone": "resnet152"}, 133_696_085),
        ({"backbone": "resnet50", "pool_stages": 2}, 90_802_773),
    ],
    ids=str,
)
def test_refinenet_counts(options: dict[str, object], expected: int) -> None:
    assert count("refinenet", **options) == expected  # type: ignore[arg-type]


def test_refinenet_cascades_from_coarse_to_fine() -> None:
    model = on_meta("refinenet").eval()
    blocks = shapes_of(model.blocks)  # type: ignore[arg-type]
    run_on_meta(model, 96, 128)
    assert blocks == [(512, 3, 4), (256, 6, 8), (256, 12, 16), (256, 24, 32)]


# U-Nets


def test_residual_unet_has_the_count_of_table_1() -> None:
    assert count("residual_unet", num_classes=1, in_channels=1) == 11_451_745


def test_unet3d_valid_sizes_and_the_papers_count() -> None:
    model = on_meta("unet3d", num_classes=3, padding="valid")
    assert run_on_meta(model, 132, 132, 116)["out"].shape == (1, 3, 44, 44, 28)
    uncounted = sum(p.numel() for m in model.modules() if isinstance(m, nn.BatchNorm3d)
                    for p in m.parameters())  # fmt: skip
    for layer in model.modules():
        if isinstance(layer, nn.ConvTranspose3d) and layer.bias is not None:
            uncounted += layer.bias.numel()
    assert sum(p.numel() for p in model.parameters()) - uncounted == 19_069_955


def test_compact_pair_is_of_4x4_kernels_with_stride_2() -> None:
    assert count("fcn_small", num_classes=12) == 1_384_652
    assert count("unet_small", num_classes=12) == 1_554_636
    layers = [m for m in on_meta("unet_small").modules()
              if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]  # fmt: skip
    assert len(layers) == 8
    assert {(m.kernel_size, m.stride) for m in layers} == {((4, 4), (2, 2))}


# Sliding window


def test_sliding_window_counts() -> None:
    assert count("sliding_window", num_classes=2, in_channels=1) == 219_290


def test_convolutional_twin_equals_every_window(
    float64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliding_window, "WIDTH", 4)
    monkeypatch.setattr(sliding_window, "HIDDEN", 8)
    torch.manual_seed(0)
    model = create_model("sliding_window", num_classes=3, in_channels=2).eval()
    x = torch.randn(1, 2, 33, 35)
    padded = reflect_pad(x, 47)
    windows = padded.unfold(2, 95, 1).unfold(3, 95, 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    with torch.no_grad():
        by_window = torch.cat([model.classify(part) for part in windows.split(35)])  # type: ignore[operator]
        at_once = model(x)["out"]
    by_window = by_window.reshape(33, 35, 3).permute(2, 0, 1)[None]
    torch.testing.assert_close(at_once, by_window, rtol=1e-10, atol=1e-12)
    assert by_window.std() > 0.01
