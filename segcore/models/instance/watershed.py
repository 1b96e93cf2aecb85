"""U-Net whose classes and borders become objects: its own way of telling touching cells apart.

Every pixel is background, an object's interior or its border; touching objects are kept apart by
two borders and, in the gaps, by U-Net's border weights. Evaluation floods the interiors.

Reference: Ronneberger, Fischer & Brox 2015, arXiv:1505.04597.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from segcore.encoders import Encoder, create_encoder
from segcore.errors import OptionError
from segcore.inference.watershed import separate_objects
from segcore.losses.border import border_weight_map, border_weighted_cross_entropy
from segcore.losses.cross_entropy import cross_entropy
from segcore.losses.dice import dice
from segcore.models.blocks import ConvNormAct, init_he, resize
from segcore.models.card import ModelCard
from segcore.models.detection.images import ImageBatch, Preparation, Target
from segcore.models.detection.pixel_targets import (
    BORDER,
    INTERIOR,
    crowd_map,
    pixel_targets,
)
from segcore.models.detection.position_sensitive import mask_boxes

CARDS = {
    "watershed": ModelCard(
        name="watershed",
        title="U-Net with borders and a watershed",
        paper="Ronneberger, Fischer & Brox 2015, U-Net: Convolutional Networks for Biomedical "
        "Image Segmentation, arXiv:1505.04597",
        year=2015,
        task="instance",
        parameters=14_331_399,
        notes="The paper predicts cell and background and takes connected components; here the "
        "border is a class of its own, and things of several classes are told apart by further "
        "logits.",
    )
}
MIN_STD = 1e-3


class Decoder(nn.Module):
    """From the deepest features to the image's size: nearest upsampling, skip, two convolutions.

    A level of stride s has base_channels * s / 4 channels, at least 16.

    Shape:
        features: as the encoder gives them
        returns: [N, out_channels, H, W]
    """

    def __init__(self, encoder: Encoder, base_channels: int) -> None:
        super().__init__()
        skips = dict(zip(encoder.strides, encoder.out_channels, strict=True))
        channels = encoder.out_channels[-1]
        self.blocks = nn.ModuleList()
        stride = encoder.output_stride
        while stride > 1:
            stride //= 2
            width = max(base_channels * stride // 4, 16)
            self.blocks.append(
                nn.Sequential(
                    ConvNormAct(channels + skips.get(stride, 0), width, bias=False),
                    ConvNormAct(width, width, bias=False),
                )
            )
            channels = width
        self.out_channels = channels
        init_he(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        *skips, x = features
        for block in self.blocks:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            if skips and skips[-1].shape[2:] == x.shape[2:]:
                x = torch.cat([skips.pop(), x], dim=1)
            x = block(x)
        return x


class Watershed(nn.Module):
    """Classes of pixels, and objects made of them.

    Shape:
        images: list of float [in_channels, H, W], of any sizes
        targets: list of dict with "masks" [n, H, W], "labels" [n] and optional "iscrowd" [n]
        returns: in training a dict of losses; else a list of dict with "boxes" [m, 4], "labels"
            [m], "scores" [m] (descending) and "masks" float [m, 1, H, W]
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        *,
        prepare: Preparation,
        standardise: bool,
        base_channels: int,
        border: float,
        w0: float,
        sigma: float,
        marker_threshold: float,
        min_area: int,
    ) -> None:
        super().__init__()
        self.encoder, self.prepare = encoder, prepare
        self.decoder = Decoder(encoder, base_channels)
        # One class of things needs no logits to tell it from others.
        self.things = num_classes - 1
        labels = self.things if self.things > 1 else 0
        self.head = nn.Conv2d(self.decoder.out_channels, 3 + labels, 3, padding=1)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        self.standardise = standardise
        self.border, self.w0, self.sigma = border, w0, sigma
        self.marker_threshold, self.min_area = marker_threshold, min_area

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if targets is not None:
            targets = [{**target, "semantic": crowd_map(target)} for target in targets]
        batch, prepared = self.prepare(images, targets, training=self.training)
        x = standardise(batch) if self.standardise else batch.tensor
        logits = self.head(self.decoder(self.encoder(x)))
        if self.training:
            return self.losses(logits, prepared)
        results = []
        for each, size, original in zip(logits, batch.sizes, batch.originals, strict=True):
            own = resize(each[None, :, : size[0], : size[1]].float(), original)
            results.append(self.objects(own[0]))
        return results

    def losses(self, logits: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Border-weighted cross-entropy and Dice of the three, cross-entropy of the things."""
        size = logits.shape[2:]
        maps = [pixel_targets(target, size, border=self.border) for target in targets]
        weights = [border_weight_map(each.ids, w0=self.w0, sigma=self.sigma) for each in maps]

        def batched(values: Sequence[NDArray[Any]]) -> Tensor:
            return torch.from_numpy(np.stack(values)).to(logits.device)

        pixels = batched([each.kinds for each in maps])
        losses = {
            "loss_border": border_weighted_cross_entropy(logits[:, :3], pixels, batched(weights)),
            "loss_dice": dice(logits[:, :3], pixels),
        }
        if self.things > 1:
            things = batched([each.things for each in maps])
            losses["loss_class"] = cross_entropy(logits[:, 3:], things)
        return losses

    def objects(self, logits: Tensor) -> dict[str, Tensor]:
        """Boxes, labels, scores and masks of one image's logits [3 or 3 + things, H, W]."""
        probability = logits[:3].softmax(0)
        foreground = probability[INTERIOR] + probability[BORDER]
        ids = separate_objects(
            probability[INTERIOR].cpu().numpy(),
            probability[BORDER].cpu().numpy(),
            marker_threshold=self.marker_threshold,
            min_area=self.min_area,
        )
        objects = torch.from_numpy(ids).to(logits.device).long()
        count = int(objects.max())
        areas = objects.new_zeros(count + 1, dtype=torch.float32)
        flat = objects.reshape(-1)
        areas.index_add_(0, flat, torch.ones_like(flat, dtype=torch.float32))

        def mean(values: Tensor) -> Tensor:
            sums = values.new_zeros(count + 1, len(values)).index_add_(0, flat, values.flatten(1).T)
            return sums[1:] / areas[1:, None]

        # Not of the interior alone: small objects are mostly border.
        scores = mean(foreground[None])[:, 0]
        labels = torch.ones(count, dtype=torch.int64, device=logits.device)
        if self.things > 1:
            labels = 1 + mean(logits[3:].softmax(0)).argmax(1)
        order = scores.argsort(descending=True, stable=True)
        numbers = order + 1
        masks = (objects == numbers[:, None, None]) * foreground
        return {
            "boxes": mask_boxes(masks > 0.5),
            "labels": labels[order],
            "scores": scores[order],
            "masks": masks[:, None],
        }


def standardise(batch: ImageBatch) -> Tensor:
    """Each image less its mean and over its standard deviation, of all its channels together."""
    x = batch.tensor.clone()
    for image, (height, width) in zip(x, batch.sizes, strict=True):
        own = image[:, :height, :width]
        own.sub_(own.mean()).div_(own.std().clamp(min=MIN_STD))
    return x


def watershed(
    *,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    backbone: str = "resnet18",
    standardise: bool = True,
    base_channels: int = 64,
    border: float = 2.0,
    w0: float = 10.0,
    sigma: float = 5.0,
    marker_threshold: float = 0.5,
    min_area: int = 10,
    min_size: int | Sequence[int] | None = None,
    max_size: int | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> Watershed:
    """U-Net with borders and a watershed.

    Args:
        num_classes: background and the classes of things.
        in_channels: channels of the images.
        pretrained: ImageNet weights in the backbone.
        backbone: any encoder.
        standardise: give every image mean 0 and deviation 1, whatever its exposure was.
        base_channels: of the decoder at stride 4.
        border: width of an object's border in pixels.
        w0, sigma: height and width (pixels) of U-Net's weights in the gaps between objects.
        marker_threshold: probability of the interiors that the flood starts from.
        min_area: smaller objects are dropped, in pixels.
        min_size, max_size, image_mean, image_std: as `Preparation`.

    Raises:
        OptionError: a value that an option does not have.
    """
    if num_classes < 2:
        raise OptionError(f"num_classes is {num_classes}: background counts, so give at least 2")
    if base_channels < 1 or border <= 0:
        raise OptionError(
            f"base_channels is {base_channels} and border {border}: give at least 1 and above 0"
        )
    return Watershed(
        create_encoder(backbone, in_channels=in_channels, pretrained=pretrained),
        num_classes,
        prepare=Preparation(in_channels, min_size, max_size, image_mean, image_std),
        standardise=standardise,
        base_channels=base_channels,
        border=border,
        w0=w0,
        sigma=sigma,
        marker_threshold=marker_threshold,
        min_area=min_area,
    )
