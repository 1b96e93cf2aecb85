"""Backbones as feature pyramids: any input channels, any output stride, optional weights."""

import importlib
from collections.abc import Callable
from pathlib import Path

from torch import nn

from segcore.encoders.base import Encoder, TrunkEncoder, probe, pyramid
from segcore.encoders.dilation import dilate
from segcore.encoders.first_conv import adapt_first_conv
from segcore.encoders.timm_encoder import TimmEncoder
from segcore.encoders.weights import (
    load_checkpoint,
    load_trunk,
    read_checkpoint,
    torchvision_weights,
)
from segcore.errors import OptionError, unknown_name

__all__ = ["ENCODERS", "Encoder", "create_encoder", "list_encoders"]

RESNET = "segcore.encoders.resnet:trunk"
VGG = "segcore.encoders.vgg:trunk"
FEATURES = "segcore.encoders.torchvision_trunks:features"
TIMM = "timm:"

ENCODERS: dict[str, str] = {
    "resnet18": RESNET,
    "resnet34": RESNET,
    "resnet50": RESNET,
    "resnet50_deep": RESNET,
    "resnet101": RESNET,
    "resnet101_deep": RESNET,
    "resnet152": RESNET,
    "resnext50_32x4d": RESNET,
    "resnext101_32x8d": RESNET,
    "resnext101_64x4d": RESNET,
    "wide_resnet50_2": RESNET,
    "wide_resnet101_2": RESNET,
    "vgg11": VGG,
    "vgg11_bn": VGG,
    "vgg13": VGG,
    "vgg13_bn": VGG,
    "vgg16": VGG,
    "vgg16_bn": VGG,
    "vgg19": VGG,
    "vgg19_bn": VGG,
    "alexnet": FEATURES,
    "densenet121": FEATURES,
    "densenet161": FEATURES,
    "densenet169": FEATURES,
    "densenet201": FEATURES,
    "mobilenet_v2": FEATURES,
    "mobilenet_v3_small": FEATURES,
    "mobilenet_v3_large": FEATURES,
    "efficientnet_b0": FEATURES,
    "efficientnet_b1": FEATURES,
    "efficientnet_b2": FEATURES,
    "efficientnet_b3": FEATURES,
    "efficientnet_b4": FEATURES,
    "efficientnet_b5": FEATURES,
    "efficientnet_b6": FEATURES,
    "efficientnet_b7": FEATURES,
    "efficientnet_v2_s": FEATURES,
    "efficientnet_v2_m": FEATURES,
    "efficientnet_v2_l": FEATURES,
    "convnext_tiny": FEATURES,
    "convnext_small": FEATURES,
    "convnext_base": FEATURES,
    "convnext_large": FEATURES,
    "googlenet": "segcore.encoders.torchvision_trunks:googlenet",
    "googlenet_caffe": "segcore.encoders.googlenet:trunk",
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
    if output_stride not in (8, 16, 32):
        raise OptionError(f"output_stride is {output_stride!r}; it can be 8, 16 or 32")
    if name.startswith(TIMM):
        return _timm(name.removeprefix(TIMM), in_channels, output_stride, pretrained)
    if name not in ENCODERS:
        raise unknown_name("backbone", name, [*ENCODERS, "timm:<name>"])
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
    dilate(trunk, [stride for _, stride in reached], output_stride)
    return TrunkEncoder(
        trunk,
        in_channels=in_channels,
        taps=taps,
        out_channels=[reached[i][0] for i in taps],
        strides=[min(reached[i][1], output_stride) for i in taps],
    )


def _timm(
    name: str, in_channels: int, output_stride: int, pretrained: bool | str | Path
) -> TimmEncoder:
    encoder = TimmEncoder(
        name,
        in_channels=in_channels,
        output_stride=output_stride,
        pretrained=pretrained is True,
    )
    if pretrained and pretrained is not True:
        load_checkpoint(encoder, Path(pretrained))
    return encoder
