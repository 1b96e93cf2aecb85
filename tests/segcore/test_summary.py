"""The summary against known sizes, counts, receptive fields and FLOPs."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.encoders.vgg import trunk
from segcore.errors import ShapeError
from segcore.models import create_model
from segcore.summary import main, receptive_field, render, summarize


def on_meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, num_classes=21, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "field", "stride"),
    [
        ("sliding_window", 95, 1),
        ("unet", 188, 16),
        ("fcn_small", 62, 16),
        # 404 of fc7 and one more step of 32 that the last deconvolution's kernel takes in.
        ("fcn32s", 436, 32),
        ("pspnet", None, 8),
        ("deeplab_largefov", 419, 8),
    ],
)
def test_receptive_field_and_stride(name: str, field: int | None, stride: int) -> None:
    assert receptive_field(on_meta(name)) == ((field, field), stride)


def test_vgg16_trunk_sees_212_pixels() -> None:
    assert receptive_field(trunk("vgg16")) == ((212, 212), 32)
    assert receptive_field(trunk("vgg16")[:-1]) == ((196, 196), 16)


@pytest.mark.parametrize("depth", [1, 4, 9])
def test_conv_stack_sees_one_pixel_a_layer_on_each_side(depth: int) -> None:
    field, stride = receptive_field(on_meta("conv_stack", depth=depth, width=2))
    assert field == (2 * depth + 1, 2 * depth + 1)
    assert stride == 1


def test_receptive_field_counts_dilation_kernel_and_axis() -> None:
    layers = [nn.Conv2d(3, 4, (3, 1), padding=(5, 0), dilation=(5, 1)), nn.BatchNorm2d(4),
              nn.ReLU(inplace=True), nn.Conv2d(4, 1, (3, 7), stride=(2, 1))]  # fmt: skip
    assert receptive_field(nn.Sequential(*layers)) == ((1 + 10 + 2, 7), 2)


class Unpooled(nn.Module):
    """Max-pooling and its inverse: a pixel of the result comes from any of its window."""

    def forward(self, x: Tensor) -> Tensor:
        pooled, places = F.max_pool2d(x, 4, return_indices=True)
        return F.max_unpool2d(pooled, places, 4)


def test_unpooling_passes_on_the_whole_window() -> None:
    assert receptive_field(Unpooled()) == ((4, 4), 4)


def test_footprint_agrees_with_a_real_gradient() -> None:
    """Where no maximum interferes: positive weights, average pooling, a dilated convolution."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.AvgPool2d(2), nn.Conv2d(2, 2, 3, dilation=3), nn.ReLU(),
        nn.ConvTranspose2d(2, 1, 4, stride=2, padding=1),
    ).double()  # fmt: skip
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.1, 1.0)
    x = torch.rand(1, 1, 128, 32, dtype=torch.float64, requires_grad=True)
    y = model(x)
    y[0, 0, y.shape[2] // 2].sum().backward()
    assert x.grad is not None
    rows = x.grad.sum((0, 1, 3)).nonzero()
    assert receptive_field(model)[0][0] == int(rows.max() - rows.min()) + 1


def test_layers_add_up() -> None:
    summary = summarize(on_meta("unet_small"), (64, 96))
    assert summary.parameters == 1_563_861
    assert summary.trainable == summary.parameters
    assert summary.output == {"out": (21, 64, 96)}
    tops = [layer for layer in summary.layers if layer.depth == 1]
    assert sum(layer.parameters for layer in tops) == summary.parameters
    assert sum(layer.flops for layer in tops) == summary.flops
    first = next(layer for layer in summary.layers if layer.name == "down.0")
    assert first.output == ((32, 32, 48),)
    assert first.flops == 2 * (3 * 4 * 4) * 32 * 32 * 48


def test_linknet_has_about_the_papers_flops() -> None:
    """The paper counts 21.2 G at 640 x 360; ours runs padded to 384, without norm and ReLU."""
    assert summarize(on_meta("linknet"), (360, 640)).flops == pytest.approx(21.2e9, rel=0.05)


def test_a_summary_leaves_the_model_alone() -> None:
    model = create_model("fcn_small", num_classes=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    summarize(model.train(), (32, 40))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with pytest.raises(ShapeError):
        summarize(model, (32, 31))
    assert model.training


def test_volumes() -> None:
    summary = summarize(on_meta("unet3d"), (16, 24, 32))
    assert summary.output == {"out": (21, 16, 24, 32)}
    assert len(summary.receptive_field) == 3


def test_table_is_tidy() -> None:
    text = render("a title", summarize(on_meta("fcn_small"), (32, 40)), depth=1)
    lines = text.splitlines()
    assert lines[0] == "a title"
    assert lines[2].split() == ["layer", "kind", "output", "parameters", "MFLOPs"]
    assert [line.split()[0] for line in lines[4:6]] == ["down", "up"]
    assert "receptive field  62 x 62" in lines
    assert "output stride    16" in lines


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conv_stack", "--classes", "11", "--size", "32", "40", "--in-channels", "1"]) == 0
    assert "out 11x32x40" in capsys.readouterr().out
    assert main(["conv_stak"]) == 1
    assert "did you mean 'conv_stack'" in capsys.readouterr().err
    assert main(["conv_stack", "--size", "8", "40"]) == 1
    assert "too small" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["unet3d", "--size", "32", "40"])
