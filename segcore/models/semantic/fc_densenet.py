"""FC-DenseNet (Tiramisu): dense blocks down and up, joined by skips.

Reference: Jegou et al. 2017, arXiv:1611.09326; SimJeg/FC-DenseNet for the stack sizes, which
correct the paper's Table 2.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segcore.errors import OptionError
from segcore.models.blocks import (
    check_choice,
    check_images,
    crop_to,
    init_subpixels,
    pad_to_multiple,
)
from segcore.models.card import ModelCard
from segcore.models.growing_stack import grow, remember
from segcore.models.upsampling import UPSAMPLINGS, create_upsample

PAPER = (
    "Jegou, Drozdzal, Vazquez, Romero & Bengio 2017, The One Hundred Layers Tiramisu: Fully "
    "Convolutional DenseNets for Semantic Segmentation, arXiv:1611.09326"
)
NOTES = (
    "The authors evaluate with batch statistics in batch norm; eval mode here uses the running "
    "averages and scores differently."
)
# name: (growth rate, layers of each block on the way down, layers of the bottleneck)
LAYOUTS: dict[str, tuple[int, tuple[int, ...], int]] = {
    "fc_densenet56": (12, (4, 4, 4, 4, 4), 4),
    "fc_densenet67": (16, (5, 5, 5, 5, 5), 5),
    "fc_densenet103": (16, (4, 5, 7, 10, 12), 15),
}
FIRST_CHANNELS = 48


def _card(
    name: str, layers: int, parameters: int, counts: dict[int, int], miou: float
) -> ModelCard:
    return ModelCard(
        name=name,
        title=f"FC-DenseNet{layers}",
        paper=PAPER,
        year=2017,
        task="semantic",
        parameters=parameters,
        counts=counts,
        published={"camvid_miou": miou},
        notes=NOTES,
    )


CARDS = {
    "fc_densenet56": _card("fc_densenet56", 56, 1_378_725, {11: 1_376_795}, 58.9),
    "fc_densenet67": _card("fc_densenet67", 67, 3_466_133, {11: 3_463_243}, 65.8),
    "fc_densenet103": _card("fc_densenet103", 103, 9_324_661, {11: 9_322_091, 12: 9_322_348}, 66.9),
}


class DenseLayer(nn.Sequential):
    """Batch norm, ReLU, 3x3 convolution, dropout (Table 1).

    Shape:
        x: [N, in_channels, H, W]
        returns: [N, growth_rate, H, W]
    """

    def __init__(self, in_channels: int, growth_rate: int, dropout: float) -> None:
        super().__init__(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, growth_rate, 3, padding=1),
            nn.Dropout2d(dropout),
        )


class DenseBlock(nn.Module):
    """Each layer sees the block's input and the maps of all layers before it (Fig. 2).

    Shape:
        parts: [N, any, H, W] each; together in_channels
        returns: the whole stack, [N, in_channels + layers * growth_rate, H, W]
    """

    def __init__(self, in_channels: int, growth_rate: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.layers = nn.ModuleList(
            DenseLayer(in_channels + index * growth_rate, growth_rate, dropout)
            for index in range(layers)
        )

    def forward(self, *parts: Tensor) -> Tensor:
        if self._plain(parts[0]):
            maps = list(parts)
            for layer in self.layers:
                maps.append(layer(torch.cat(maps, dim=1)))
            return torch.cat(maps, dim=1)
        rows: list[list[Any]] = [list(layer.children()) for layer in self.layers]
        masks = [
            dropout(conv.weight.new_ones(len(parts[0]), conv.out_channels, 1, 1))
            for _, _, conv, dropout in rows
        ]
        layers = [(norm.weight, norm.bias, conv.weight, conv.bias) for norm, _, conv, _ in rows]
        eps = [norm.eps for norm, *_ in rows]
        stack, mean, var = grow(parts, layers, masks=masks, eps=eps)
        for norm, *_ in rows:
            remember(norm, mean, var, count=stack.numel() // stack.shape[1])
        return stack

    def _plain(self, x: Tensor) -> bool:
        """Whether to compute by modules: where nothing is to be saved, or others look on."""
        return (
            not self.training
            or not torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or x.device.type == "meta"
            or not all(_has_batch_statistics(next(layer.children())) for layer in self.layers)
        )


def _has_batch_statistics(norm: nn.Module) -> bool:
    """Whether a norm is an ordinary batch norm in training: not frozen, not shared by workers."""
    return type(norm) is nn.BatchNorm2d and norm.training and norm.affine


class TransitionDown(nn.Sequential):
    """Batch norm, ReLU, 1x1 convolution of the same width, dropout, max-pooling by 2.

    Shape:
        x: [N, channels, H, W]
        returns: [N, channels, H // 2, W // 2]
    """

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__(
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 1),
            nn.Dropout2d(dropout),
            nn.MaxPool2d(2),
        )


class TransitionUp(nn.Module):
    """3x3 transposed convolution of stride 2, cut at the centre to the skip; or an `upsample`.

    Shape:
        x: [N, channels, h, w]
        skip: [N, any, H, W] with h = H // 2, w = W // 2
        returns: [N, channels, H, W]
    """

    def __init__(self, channels: int, upsample: str) -> None:
        super().__init__()
        self.cut = upsample == "transposed"
        self.enlarge: nn.Module = (
            nn.ConvTranspose2d(channels, channels, 3, stride=2)
            if self.cut
            else create_upsample(upsample, channels, channels)
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.cut:
            # 2 h + 1 rows for 2 h or 2 h + 1: at the centre is from the first on.
            return crop_to(self.enlarge(x), skip.shape[2:])
        enlarged: Tensor = self.enlarge(x, size=skip.shape[2:])
        return enlarged


class FCDenseNet(nn.Module):
    """Dense blocks with transitions between them; skips join by concatenation (Fig. 1).

    On the way up only the maps that a block makes are passed on, not its input (section 3.1), but
    for the last block, whose whole stack goes to the classifier.

    Shape:
        x: [N, in_channels, H, W], H and W at least 32
        returns: {"out": [N, num_classes, H, W]}
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        growth_rate: int,
        down_layers: Sequence[int],
        bottleneck_layers: int,
        dropout: float = 0.2,
        upsample: str = "transposed",
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.first = nn.Conv2d(in_channels, FIRST_CHANNELS, 3, padding=1)
        self.down, self.transitions_down = nn.ModuleList(), nn.ModuleList()
        channels, skips = FIRST_CHANNELS, []
        for layers in down_layers:
            self.down.append(DenseBlock(channels, growth_rate, layers, dropout))
            channels += layers * growth_rate
            self.transitions_down.append(TransitionDown(channels, dropout))
            skips.append(channels)
        self.bottleneck = DenseBlock(channels, growth_rate, bottleneck_layers, dropout)
        self.transitions_up, self.up = nn.ModuleList(), nn.ModuleList()
        new = bottleneck_layers * growth_rate
        for layers, skip in zip(reversed(down_layers), reversed(skips), strict=True):
            self.transitions_up.append(TransitionUp(new, upsample))
            channels = new + skip
            self.up.append(DenseBlock(channels, growth_rate, layers, dropout))
            new = layers * growth_rate
        self.classifier = nn.Conv2d(channels + new, num_classes, 1)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        init_subpixels(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        height, width = check_images(x, self.in_channels)
        # 2 x 2 positions at the bottleneck keep batch norm defined for a batch of one.
        x = pad_to_multiple(x, 1, minimum=64)
        if self.training:  # the layout of a `growing_stack`; on a CPU twice as fast in any case
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.first(x)
        skips = []
        for block, transition in zip(self.down, self.transitions_down, strict=True):
            skips.append(block(x))
            x = transition(skips[-1])
        stack, block = self.bottleneck(x), self.bottleneck
        for transition, above in zip(self.transitions_up, self.up, strict=True):
            new, skip = stack[:, block.in_channels :], skips.pop()
            stack, block = above(transition(new, skip), skip), above
        logits = self.classifier(stack)
        return {"out": logits[:, :, :height, :width]}


def _build(
    name: str, num_classes: int, in_channels: int, dropout: float, upsample: str
) -> FCDenseNet:
    check_choice("upsample", upsample, UPSAMPLINGS)
    if not 0 <= dropout < 1:
        raise OptionError(f"dropout is {dropout!r}: give a probability in [0, 1)")
    growth_rate, down_layers, bottleneck_layers = LAYOUTS[name]
    return FCDenseNet(
        in_channels,
        num_classes,
        growth_rate=growth_rate,
        down_layers=down_layers,
        bottleneck_layers=bottleneck_layers,
        dropout=dropout,
        upsample=upsample,
    )


def fc_densenet56(
    *,
    num_classes: int,
    in_channels: int = 3,
    dropout: float = 0.2,
    upsample: str = "transposed",
) -> FCDenseNet:
    """FC-DenseNet56: growth rate 12, 4 layers a block."""
    return _build("fc_densenet56", num_classes, in_channels, dropout, upsample)


def fc_densenet67(
    *,
    num_classes: int,
    in_channels: int = 3,
    dropout: float = 0.2,
    upsample: str = "transposed",
) -> FCDenseNet:
    """FC-DenseNet67: growth rate 16, 5 layers a block."""
    return _build("fc_densenet67", num_classes, in_channels, dropout, upsample)


def fc_densenet103(
    *,
    num_classes: int,
    in_channels: int = 3,
    dropout: float = 0.2,
    upsample: str = "transposed",
) -> FCDenseNet:
    """FC-DenseNet103: growth rate 16, blocks of 4, 5, 7, 10, 12 and 15 layers."""
    return _build("fc_densenet103", num_classes, in_channels, dropout, upsample)
