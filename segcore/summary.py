"""What an architecture is made of: layers, shapes, parameters, FLOPs, receptive field, stride.

`python -m segcore.summary NAME` prints it. Shapes and FLOPs come from one run on torch's meta
device, so nothing is computed and no memory is taken.

FLOPs are 2 for each multiply-add of convolutions and matrix products, at batch 1; other layers
count nothing. LinkNet's paper gives 21.2 G at 640 x 360, this count 20.4.

The receptive field is that of the centre pixel's logits, measured by `models.footprint`; in a
network with strides its neighbours may see some pixels more or less. The output stride is that of
the coarsest map between a strided convolution or pooling and the logits, as a power of 2; adaptive
pooling (PSPNet's bins) is left out of it.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from segcore.errors import SegcoreError
from segcore.models import create_model, model_card
from segcore.models.footprint import measure_footprint

# Long sides on which a receptive field is tried, by spatial dimensions.
LONG_SIDES = {2: (256, 1024, 4096), 3: (128, 256)}
SHORT_SIDE = 32


@dataclass(frozen=True)
class Layer:
    """One module of a model.

    Args:
        name: dotted path in the model.
        kind: class name.
        depth: number of parts of the name.
        output: shapes [C, *size] of what it last returned, none where it was not called itself.
        parameters: its own and its children's.
        flops: its own and its children's, of all its calls.
    """

    name: str
    kind: str
    depth: int
    output: tuple[tuple[int, ...], ...]
    parameters: int
    flops: int


@dataclass(frozen=True)
class Summary:
    """What `summarize` finds; sizes are (H, W), or (D, H, W) for volumes.

    Args:
        size: of the input.
        layers: every module but the model itself, in order of registration.
        output: shapes [C, *size] of what the model returns, by name.
        parameters: number of all parameters.
        trainable: number of those that train.
        flops: 2 for each multiply-add of convolutions and matrix products, at batch 1.
        receptive_field: extent of the input that one output pixel reads; None where that is all.
        output_stride: input pixels a position of the coarsest map.
    """

    size: tuple[int, ...]
    layers: tuple[Layer, ...]
    output: dict[str, tuple[int, ...]]
    parameters: int
    trainable: int
    flops: int
    receptive_field: tuple[int | None, ...]
    output_stride: int


def summarize(model: nn.Module, size: Sequence[int], *, in_channels: int = 3) -> Summary:
    """Measure a model in eval mode; its weights, mode and device are left alone.

    Args:
        model: any module of [N, in_channels, *size] to logits, a list of maps or a dict of them.
        size: (H, W), or (D, H, W) for volumes.
        in_channels: channels of the input.

    Raises:
        ShapeError: the model cannot take this size or number of channels.
    """
    out, shapes, counter = _run_on_meta(model, size, in_channels)
    flops = {key: sum(counts.values()) for key, counts in counter.get_flop_counts().items()}
    field, stride = receptive_field(model, in_channels=in_channels, dims=len(size))
    root = type(model).__name__
    return Summary(
        size=tuple(size),
        layers=tuple(
            Layer(
                name=name,
                kind=type(module).__name__,
                depth=name.count(".") + 1,
                output=shapes.get(name, ()),
                parameters=_count(module),
                flops=_flops(module, f"{root}.{name}", flops),
            )
            for name, module in model.named_modules()
            if name
        ),
        output={key: tuple(y.shape[1:]) for key, y in _maps(out).items()},
        parameters=_count(model),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        flops=counter.get_total_flops(),
        receptive_field=field,
        output_stride=stride,
    )


def count_flops(model: nn.Module, size: Sequence[int], *, in_channels: int = 3) -> int:
    """The `flops` of `summarize` alone, without its other measurements."""
    return int(_run_on_meta(model, size, in_channels)[2].get_total_flops())


def _run_on_meta(
    model: nn.Module, size: Sequence[int], in_channels: int
) -> tuple[object, dict[str, tuple[tuple[int, ...], ...]], FlopCounterMode]:
    """Output of one image in eval mode, shapes of what each module returned, and the FLOPs."""
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {}
    hooks = [
        module.register_forward_hook(_noting(shapes, name))
        for name, module in model.named_modules()
    ]
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    state = {
        key: torch.empty(value.shape, dtype=value.dtype, device="meta")
        for key, value in (*model.named_parameters(), *model.named_buffers())
    }
    x = torch.empty(1, in_channels, *size, device="meta")
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            out = functional_call(model, state, (x,))
    finally:
        for hook in hooks:
            hook.remove()
        for module in was_training:
            module.training = True
    return out, shapes, counter


def receptive_field(
    model: nn.Module, *, in_channels: int = 3, dims: int = 2
) -> tuple[tuple[int | None, ...], int]:
    """Receptive field along each axis (None: the whole image) and output stride.

    Each axis is measured on a strip, long along this axis only.

    Args:
        model: any module that takes strips of 32 by 256 or more pixels.
        in_channels: channels of the input.
        dims: 2 for images, 3 for volumes.
    """
    field: list[int | None] = []
    stride = 1
    for axis in range(dims):
        extent: int | None = None
        for side in LONG_SIDES[dims]:
            size = [side if a == axis else SHORT_SIDE for a in range(dims)]
            first, last, smallest = measure_footprint(
                model, size, in_channels=in_channels, axis=axis
            )
            if first > 0 and last < side - 1:
                extent = last - first + 1
                break
        stride = max(stride, 2 ** round(math.log2(side / smallest)))
        field.append(extent)
    return tuple(field), stride


def _noting(
    shapes: dict[str, tuple[tuple[int, ...], ...]], name: str
) -> Callable[[nn.Module, object, object], None]:
    def note(_module: nn.Module, _inputs: object, output: object) -> None:
        shapes[name] = tuple(tuple(y.shape[1:]) for y in _maps(output).values())

    return note


def _maps(output: object) -> dict[str, Tensor]:
    """The tensors of an output by name, or by index where they have none."""
    if isinstance(output, Tensor):
        return {"out": output}
    if isinstance(output, dict):
        return {str(key): y for key, y in output.items() if isinstance(y, Tensor)}
    if isinstance(output, (list, tuple)):
        return {str(index): y for index, y in enumerate(output) if isinstance(y, Tensor)}
    return {}


def _flops(module: nn.Module, path: str, counted: dict[str, int]) -> int:
    """Those of a module; of its children where they are called without it."""
    if path in counted:
        return counted[path]
    return sum(_flops(m, f"{path}.{name}", counted) for name, m in module.named_children())


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def render(title: str, summary: Summary, *, depth: int = 2) -> str:
    """The summary as text: a table of the layers down to a depth, then the totals."""
    rows = [("layer", "kind", "output", "parameters", "MFLOPs")]
    for layer in summary.layers:
        if layer.depth <= depth:
            name = "  " * (layer.depth - 1) + layer.name.rsplit(".", 1)[-1]
            shape = ", ".join(_by(s) for s in layer.output) or "-"
            flops = f"{layer.flops / 1e6:,.1f}" if layer.flops else "-"
            rows.append((name, layer.kind, shape, f"{layer.parameters:,}", flops))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(
            cell.rjust(width) if column > 2 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * (sum(widths) + 8))
    field = " x ".join("all" if side is None else str(side) for side in summary.receptive_field)
    outputs = ", ".join(f"{name} {_by(shape)}" for name, shape in summary.output.items())
    facts = [
        ("input", " x ".join(str(side) for side in summary.size)),
        ("output", outputs),
        ("parameters", f"{summary.parameters:,} ({summary.trainable:,} trainable)"),
        ("FLOPs", f"{summary.flops / 1e9:,.2f} G (2 for each multiply-add, batch 1)"),
        ("receptive field", field),
        ("output stride", str(summary.output_stride)),
    ]
    return "\n".join([title, "", *lines, "", *(f"{key:<17}{value}" for key, value in facts)])


def _by(shape: Sequence[int]) -> str:
    return "x".join(str(side) for side in shape)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the summary of a registered architecture; 1 where it cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m segcore.summary", description=main.__doc__)
    parser.add_argument("name", help="an architecture, or torchvision:<builder>")
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--size", type=int, nargs="+", help="H W (or D H W); default 360 480")
    parser.add_argument("--in-channels", type=int, default=3)
    parser.add_argument("--depth", type=int, default=2, help="levels of layers that are listed")
    given = parser.parse_args(arguments)
    try:
        title, dims = given.name, 2
        if not given.name.startswith("torchvision:"):
            card = model_card(given.name)
            title, dims = f"{given.name}: {card.title} ({card.year}). {card.paper}", card.input_dims
        size = given.size or {2: (360, 480), 3: (64, 64, 64)}[dims]
        if len(size) != dims or min(size) < 1:
            parser.error(f"--size takes {dims} positive numbers for {given.name}")
        with torch.device("meta"):
            model = create_model(
                given.name, num_classes=given.classes, in_channels=given.in_channels
            )
        summary = summarize(model, size, in_channels=given.in_channels)
    except SegcoreError as error:
        print(error, file=sys.stderr)
        return 1
    print(render(title, summary, depth=given.depth))
    return 0


if __name__ == "__main__":
    sys.exit(main())
