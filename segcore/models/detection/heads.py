"""What Mask R-CNN computes for a box: its class, its shape, its mask; with FPN and with C4.

Reference: He et al. 2017, arXiv:1703.06870, Fig. 4.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from segcore.models.blocks import make_norm
from segcore.models.detection.roi_pool import pool_from_levels

MASK_CHANNELS = 256


@dataclass(frozen=True, eq=False)
class BoxOutputs:
    """Of each RoI: class logits [R, K], box codes [R, K, 4], features that the mask may share."""

    logits: Tensor
    codes: Tensor
    shared: Tensor | None = None


@dataclass(frozen=True)
class Pooling:
    """How features of a box are read: `pool_from_levels` with these strides."""

    kind: str
    strides: Sequence[int]
    aligned: bool

    def __call__(
        self, features: Sequence[Tensor], rois: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        levels = features[: len(self.strides)]
        return pool_from_levels(self.kind, levels, self.strides, rois, size, aligned=self.aligned)


class WideLinear(nn.Linear):
    """A layer over tens of thousands of inputs, whose weights lie around 1 and are scaled in use.

    A step of Adam moves every weight by the learning rate, and the sum of 50,000 of them by so much
    that at 0.001 one step undoes the layer. So scaled, it is as if they were 300.
    """

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x * math.sqrt(2 / self.in_features), self.weight, self.bias)


class BoxPredictor(nn.Module):
    """Class logits and one box code a class, both linear."""

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_features, num_classes)
        self.bbox_pred = nn.Linear(in_features, num_classes * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        codes: Tensor = self.bbox_pred(x).float()
        return self.cls_score(x).float(), codes.reshape(len(x), -1, 4)


class MaskPredictor(nn.Module):
    """Double the size, then one mask of logits a class.

    Shape:
        x: [R, in_channels, M, M]
        returns: [R, num_classes, 2M, 2M]
    """

    def __init__(self, in_channels: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(in_channels, hidden, 2, stride=2)
        self.score = nn.Conv2d(hidden, num_classes, 1)
        for layer in (self.upsample, self.score):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.score(F.relu(self.upsample(x), inplace=True))
        return logits.float()


class FPNHeads(nn.Module):
    """Two linear layers for the box, four 3x3 convolutions for the mask.

    Args:
        channels: of the pyramid.
        num_classes: with background.
        pooling: how RoIs are read.
        hidden: width of the linear layers.
        mask_convs: number of 3x3 convolutions.
        norm: after each of them; None (as published), "batch" or "group".
    """

    box_size, mask_size = 7, 14

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        pooling: Pooling,
        hidden: int = 1024,
        mask_convs: int = 4,
        norm: str | None = None,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.fc6 = nn.Linear(channels * self.box_size**2, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.box_predictor = BoxPredictor(hidden, num_classes)
        self.mask_head = nn.Sequential(*(_mask_conv(channels, norm) for _ in range(mask_convs)))
        self.mask_predictor = MaskPredictor(channels, channels, num_classes)

    def box(self, features: Sequence[Tensor], rois: Tensor) -> BoxOutputs:
        """Class logits and box codes of RoIs [R, 5]."""
        x, back = self.pooling(features, rois, self.box_size)
        x = F.relu(self.fc6(x.flatten(1)), inplace=True)
        x = F.relu(self.fc7(x), inplace=True)
        logits, codes = self.box_predictor(x)
        return BoxOutputs(logits[back], codes[back])

    def mask(self, features: Sequence[Tensor], rois: Tensor, shared: Tensor | None) -> Tensor:
        """Mask logits [R, num_classes, 28, 28] of RoIs [R, 5]; nothing is shared with the box."""
        x, back = self.pooling(features, rois, self.mask_size)
        logits: Tensor = self.mask_predictor(self.mask_head(x))
        return logits[back]


def _mask_conv(channels: int, norm: str | None) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=norm is None)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    normed = [] if norm is None else [make_norm(norm, channels)]
    return nn.Sequential(conv, *normed, nn.ReLU(inplace=True))


class C4Heads(nn.Module):
    """The fifth stage of the ResNet on 7x7 of every RoI, shared by box and mask.

    Args:
        stage: from the backbone's channels to `channels`, at stride 1.
        channels: of its output.
        num_classes: with background.
        pooling: how RoIs are read.
    """

    box_size = 7

    def __init__(
        self, stage: nn.Module, channels: int, num_classes: int, *, pooling: Pooling
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.stage = stage
        self.box_predictor = BoxPredictor(channels, num_classes)
        self.mask_predictor = MaskPredictor(channels, MASK_CHANNELS, num_classes)

    def box(self, features: Sequence[Tensor], rois: Tensor) -> BoxOutputs:
        """Class logits and box codes of RoIs [R, 5], and the stage's maps."""
        maps: Tensor = self.stage(self._pool(features, rois))
        logits, codes = self.box_predictor(maps.mean(dim=(2, 3)))
        return BoxOutputs(logits, codes, shared=maps)

    def mask(self, features: Sequence[Tensor], rois: Tensor, shared: Tensor | None) -> Tensor:
        """Mask logits [R, num_classes, 14, 14] of RoIs [R, 5], from their maps where at hand."""
        if shared is None:
            shared = self.stage(self._pool(features, rois))
        logits: Tensor = self.mask_predictor(shared)
        return logits

    def _pool(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        pooled, _ = self.pooling(features, rois, self.box_size)  # of one level: in their order
        return pooled
