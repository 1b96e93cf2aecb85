"""RefineNet: four cascaded blocks that refine coarse features with finer ones.

Reference: Lin, Milan, Shen & Reid 2017, arXiv:1611.06612; guosheng/refinenet for the released
networks, whose chained pooling has four stages where the paper's has two.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from segcore.encoders import create_encoder
from segcore.errors import OptionError
from segcore.models.blocks import (
    check_choice,
    check_images,
    crop_to,
    init_subpixels,
    pad_to_multiple,
    resize,
)
from segcore.models.card import ModelCard
from segcore.models.upsampling import UPSAMPLINGS, create_upsample

CARDS = {
    "refinenet": ModelCard(
        name="refinenet",
        title="RefineNet (4-cascaded)",
        paper="Lin, Milan, Shen & Reid 2017, RefineNet: Multi-Path Refinement Networks for "
        "High-Resolution Semantic Segmentation, arXiv:1611.06612",
        year=2017,
        task="semantic",
        parameters=118_052_437,
        counts={11: 118_029_387, 19: 118_047_827, 40: 118_096_232, 150: 118_349_782},
        published={"voc2012_test_miou": 83.4, "cityscapes_test_miou": 73.6, "ade20k_miou": 40.7},
        notes="pool_stages=4 is the released network, pool_stages=2 the paper's.",
    )
}
STRIDES = [4, 8, 16, 32]
OUTPUT_UNITS = 3


def conv3x3(in_channels: int, out_channels: int, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)


class ResidualConvUnit(nn.Module):
    """ReLU, 3x3, ReLU, 3x3, plus the input; no batch norm (Fig. 2b).

    Shape:
        x, returns: [N, channels, H, W]
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv3x3(channels, channels, bias=True)
        self.second = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(F.relu(self.first(F.relu(x))))
        return x + y


class ChainedResidualPooling(nn.Module):
    """A chain of 5x5 max-poolings and convolutions; every link is added to the input (Fig. 2d).

    Shape:
        x, returns: [N, channels, H, W]
    """

    def __init__(self, channels: int, stages: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.convs = nn.ModuleList(conv3x3(channels, channels) for _ in range(stages))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        link = x
        for conv in self.convs:
            link = conv(self.pool(link))
            x = x + link
        return x


class RefineNetBlock(nn.Module):
    """Adapt by residual units, fuse resolutions by sum, pool in a chain, refine (Fig. 2a).

    Args:
        in_channels: of the encoder's feature map.
        channels: inside the block.
        coarse_channels: of the coarser block's output; None for the deepest block.
        pool_stages: links of the pooling chain.
        upsample: how the coarser map is brought to the feature's size.

    Shape:
        feature: [N, in_channels, H, W]
        coarse: [N, coarse_channels, H / 2, W / 2], or None
        returns: [N, channels, H, W]
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        coarse_channels: int | None,
        *,
        pool_stages: int,
        upsample: str,
    ) -> None:
        super().__init__()
        self.reduce = conv3x3(in_channels, channels)
        self.adapt = nn.Sequential(*(ResidualConvUnit(channels) for _ in range(2)))
        self.fuse_fine: nn.Conv2d | None = None
        self.fuse_coarse: nn.Conv2d | None = None
        if coarse_channels is not None:
            self.fuse_fine = conv3x3(channels, channels)
            self.fuse_coarse = conv3x3(coarse_channels, channels)
            self.enlarge = create_upsample(
                upsample, channels, channels, kernel_size=None, align_corners=True
            )
        self.pool = ChainedResidualPooling(channels, pool_stages)
        self.refine = nn.Sequential(*(ResidualConvUnit(channels) for _ in range(OUTPUT_UNITS)))

    def forward(self, feature: Tensor, coarse: Tensor | None) -> Tensor:
        x = self.adapt(self.reduce(feature))
        if coarse is not None and self.fuse_fine is not None and self.fuse_coarse is not None:
            fused = self.enlarge(self.fuse_coarse(coarse), size=x.shape[2:])
            x = self.fuse_fine(x) + fused
        out: Tensor = self.refine(self.pool(x))
        return out


class RefineNet(nn.Module):
    """Four RefineNet blocks over features of strides 32, 16, 8, 4.

    Shape:
        x: [N, in_channels, H, W], H and W at least 32
        returns: {"out": [N, num_classes, H, W]}
    """

    def __init__(
        self,
        encoder: nn.Module,
        in_channels: int,
        num_classes: int,
        *,
        feature_channels: list[int],
        channels: int,
        pool_stages: int,
        dropout: float,
        upsample: str,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.in_channels = in_channels
        deepest = 2 * channels
        widths: list[tuple[int, int | None]] = [
            (deepest, None), (channels, deepest), (channels, channels), (channels, channels)
        ]  # fmt: skip
        self.blocks = nn.ModuleList(
            RefineNetBlock(feature, width, coarse, pool_stages=pool_stages, upsample=upsample)
            for feature, (width, coarse) in zip(reversed(feature_channels), widths, strict=True)
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = conv3x3(channels, num_classes, bias=True)
        for module in [*self.blocks.modules(), self.classifier]:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        init_subpixels(self.blocks)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = check_images(x, self.in_channels)
        x = pad_to_multiple(x, 32, minimum=64)
        padded = x.shape[2:]
        features = self.encoder(x)[-len(STRIDES) :]
        coarse: Tensor | None = None
        for level, (block, feature) in enumerate(zip(self.blocks, reversed(features), strict=True)):
            # The two coarsest maps are dropped out, as in the released network.
            coarse = block(self.dropout(feature) if level < 2 else feature, coarse)
        logits = self.classifier(self.dropout(coarse))
        return {"out": crop_to(resize(logits, padded), size)}


def refinenet(
    *,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    backbone: str = "resnet101",
    channels: int = 256,
    pool_stages: int = 4,
    dropout: float = 0.5,
    upsample: str = "bilinear",
) -> RefineNet:
    """RefineNet; the defaults are the released network with ResNet-101.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the images.
        pretrained: ImageNet weights in the backbone.
        backbone: any encoder with features of strides 4, 8, 16 and 32.
        channels: width of the blocks; the deepest has twice as many.
        pool_stages: links of chained residual pooling: 4 as released, 2 in the paper.
        dropout: before the classifier and on the two coarsest maps.
        upsample: of the coarser map in each fusion, a name of
            `segcore.models.upsampling.UPSAMPLINGS`.

    Raises:
        OptionError: the backbone has other strides; pool_stages or channels below 1; unknown
            upsample.
    """
    check_choice("upsample", upsample, UPSAMPLINGS)
    if min(channels, pool_stages) < 1:
        raise OptionError(f"channels={channels}, pool_stages={pool_stages}: give at least 1")
    encoder = create_encoder(backbone, in_channels=in_channels, pretrained=pretrained)
    if encoder.strides[-4:] != STRIDES:
        raise OptionError(
            f"backbone {backbone!r} has strides {encoder.strides}, refinenet needs {STRIDES}: "
            "take a resnet, densenet, convnext or efficientnet"
        )
    return RefineNet(
        encoder,
        in_channels,
        num_classes,
        feature_channels=encoder.out_channels[-4:],
        channels=channels,
        pool_stages=pool_stages,
        dropout=dropout,
        upsample=upsample,
    )
