"""A part of a backbone, for networks that read one feature map and leave the rest out."""

from torch import nn

from segcore.encoders import Encoder, create_encoder
from segcore.encoders.base import TrunkEncoder
from segcore.encoders.dilation import DilatedPool
from segcore.errors import OptionError


def trunk_to_stride(
    backbone: str, stride: int, *, in_channels: int, pretrained: bool
) -> tuple[nn.Sequential, int]:
    """Layers of a backbone up to the last of a stride, and their output channels.

    Raises:
        OptionError: the backbone has no such stride, or is no sequence of layers (timm's).
    """
    encoder = create_encoder(backbone, in_channels=in_channels, pretrained=pretrained)
    if stride not in encoder.strides:
        raise OptionError(
            f"backbone {backbone!r} has strides {encoder.strides}, {stride} is needed: "
            "take a vgg or resnet"
        )
    return _cut(backbone, encoder, encoder.strides.index(stride))


def dilated_trunk(
    backbone: str, stride: int, *, in_channels: int, pretrained: bool
) -> tuple[nn.Sequential, int]:
    """All convolutions of a backbone at one stride, and their output channels.

    Strides beyond it become dilation; a pooling behind the last convolution is left out.

    Raises:
        OptionError: the backbone is no sequence of layers (timm's).
    """
    encoder = create_encoder(
        backbone, in_channels=in_channels, output_stride=stride, pretrained=pretrained
    )
    pooled = isinstance(encoder, TrunkEncoder) and isinstance(
        encoder.trunk[-1], (nn.MaxPool2d, DilatedPool)
    )
    return _cut(backbone, encoder, len(encoder.strides) - (2 if pooled else 1))


def _cut(backbone: str, encoder: Encoder, level: int) -> tuple[nn.Sequential, int]:
    if not isinstance(encoder, TrunkEncoder):
        raise OptionError(
            f"backbone {backbone!r} is no sequence of layers that could be cut: "
            "take one of list_encoders()"
        )
    return encoder.trunk[: encoder.taps[level] + 1], encoder.out_channels[level]
