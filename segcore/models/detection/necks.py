"""From a backbone's features to the maps that proposals and boxes are read from.

References: Lin et al. 2017, arXiv:1612.03144 (FPN); Ren et al. 2015, arXiv:1506.01497 (C4).
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from segcore.encoders import Encoder, create_encoder
from segcore.encoders.base import TrunkEncoder
from segcore.errors import OptionError
from segcore.models.blocks import make_norm

FPN_STRIDES = [4, 8, 16, 32]


class FPN(nn.Module):
    """Top-down pyramid: 1x1 lateral convolutions, nearest upsampling and sum, 3x3 convolutions.

    Args:
        in_channels: of the features of strides 4, 8, 16, 32.
        channels: of every level.
        norm: after each convolution; None (as published), "batch" or "group".

    Shape:
        features: list of [N, in_channels[i], H / 2^i, W / 2^i]
        returns: the same sizes with `channels`, and a fifth level at half of the last one's size
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int, *, norm: str | None = None
    ) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_conv(c, channels, 1, norm) for c in in_channels)
        self.output = nn.ModuleList(_conv(channels, channels, 3, norm) for _ in in_channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(self.lateral, features, strict=True)
        inner = [lateral(x) for lateral, x in pairs]
        for level in range(len(inner) - 2, -1, -1):
            above = F.interpolate(inner[level + 1], size=inner[level].shape[2:], mode="nearest")
            inner[level] = inner[level] + above
        levels = [output(x) for output, x in zip(self.output, inner, strict=True)]
        return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]


def _conv(in_channels: int, channels: int, kernel_size: int, norm: str | None) -> nn.Sequential:
    conv = nn.Conv2d(
        in_channels, channels, kernel_size, padding=kernel_size // 2, bias=norm is None
    )
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(conv) if norm is None else nn.Sequential(conv, make_norm(norm, channels))


def pyramid_encoder(backbone: str, in_channels: int, *, pretrained: bool) -> Encoder:
    """A backbone whose last four features suit `FPN`.

    Raises:
        OptionError: it has other strides.
    """
    encoder = create_encoder(backbone, in_channels=in_channels, pretrained=pretrained)
    if encoder.strides[-4:] != FPN_STRIDES:
        raise OptionError(
            f"backbone {backbone!r} has strides {encoder.strides}, neck 'fpn' needs "
            f"{FPN_STRIDES}: take a resnet, densenet, mobilenet or efficientnet"
        )
    return encoder


def split_resnet(
    backbone: str, in_channels: int, *, pretrained: bool
) -> tuple[TrunkEncoder, nn.Module, int]:
    """A ResNet up to stride 16, its fifth stage at stride 1, and that stage's channels.

    Raises:
        OptionError: the backbone is not a ResNet of this library.
    """
    full = create_encoder(backbone, in_channels=in_channels, pretrained=pretrained)
    if not isinstance(full, TrunkEncoder) or not hasattr(full.trunk, "layer4"):
        raise OptionError(f"backbone {backbone!r} has no fifth stage: neck 'c4' takes a resnet")
    stage: nn.Module = full.trunk[-1]
    for layer in stage.modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
    body = TrunkEncoder(
        full.trunk[:-1],
        in_channels=in_channels,
        taps=full.taps[:-1],
        out_channels=full.out_channels[:-1],
        strides=full.strides[:-1],
    )
    return body, stage, full.out_channels[-1]
