"""Backbones as feature pyramids: any input channels, any output stride, optional weights."""

import importlib
from collections.abc import Callable
from pathlib import Path

from torch import nn

from segcore.encoders.base import Encoder, probe, pyramid
from segcore.encoders.first_conv import adapt_first_conv
from segcore.encoders.weights import load_trunk, read_checkpoint, torchvision_weights
from segcore.errors import OptionError, unknown_name

__all__ = ["ENCODERS", "Encoder", "create_encoder", "list_encoders"]

RESNET = "segcore.encoders.resnet:trunk"

ENCODERS: dict[str, str] = {
    "resnet18": RESNET,
    "resnet34": RESNET,
    "resnet50": RESNET,
    "resnet101": RESNET,
    "resnet152": RESNET,
    "resnext50_32x4d": RESNET,
    "resnext101_32x8d": RESNET,
    "resnext101_64x4d": RESNET,
    "wide_resnet50_2": RESNET,
    "wide_resnet101_2": RESNET,
}


def list_encoders() -> list[str]:
    """Names that `create_encoder` takes, sorted; "timm:<name>" works beside them."""
    return sorted(ENCODERS)


def create_encoder(
    name: str,
    *,
    in_channels: int = 3,
    output_stride: int = 32,
    pretrained: bool | str | Path = False,
) -> Encoder:
    """Build a backbone that returns one feature map per stride.

    Args:
        name: one of `list_encoders()`, or "timm:<name>".
        in_channels: channels of the images; ImageNet weights of the first layer are summed (1
            channel) or repeated and rescaled (others), as timm does.
        output_stride: 8, 16 or 32; strides beyond it become dilation.
        pretrained: True for torchvision's ImageNet weights, a path for your own.

    Raises:
        UnknownNameError: no backbone has this name.
        OptionError: output_stride is not 8, 16 or 32; weights cannot be had.
        CheckpointError: the file at `pretrained` does not fit.
    """
    if name not in ENCODERS:
        raise unknown_name("backbone", name, [*ENCODERS, "timm:<name>"])
    if output_stride not in (8, 16, 32):
        raise OptionError(f"output_stride is {output_stride!r}; it can be 8, 16 or 32")
    module, _, attribute = ENCODERS[name].partition(":")
    build: Callable[[str], nn.Sequential] = getattr(importlib.import_module(module), attribute)
    trunk = build(name)
    if pretrained is True:
        load_trunk(trunk, torchvision_weights(name), f"torchvision's {name}")
    elif pretrained:
        load_trunk(trunk, read_checkpoint(Path(pretrained)), str(pretrained))
    reached = probe(trunk)
    taps = pyramid(reached)
    adapt_first_conv(trunk, in_channels, keep_weights=bool(pretrained))
    return Encoder(
        trunk,
        in_channels=in_channels,
        taps=taps,
        out_channels=[reached[i][0] for i in taps],
        strides=[reached[i][1] for i in taps],
    )
