"""InstanceFCN: k x k maps that say where in an object a pixel lies; a window assembles its mask.

Reference: Dai et al. 2016, Instance-sensitive Fully Convolutional Networks, arXiv:1603.08678.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.errors import OptionError
from segcore.models.blocks import pad_to_multiple
from segcore.models.card import ModelCard
from segcore.models.detection.images import Preparation, Target, resize_boxes
from segcore.models.detection.position_sensitive import assemble
from segcore.models.detection.trunk import dilated_trunk
from segcore.models.detection.windows import (
    AWAY,
    AWAY_OCTAVES,
    JITTER,
    canonical_windows,
    crop_windows,
    keep_proposals,
)

CARDS = {
    "instance_fcn": ModelCard(
        name="instance_fcn",
        title="InstanceFCN",
        paper="Dai, He, Li, Ren & Sun 2016, Instance-sensitive Fully Convolutional Networks, "
        "arXiv:1603.08678",
        year=2016,
        task="instance",
        parameters=17_452_890,
        counts={2: 17_452_890},
        published={"voc2012_ar_10": 38.9, "voc2012_ar_100": 49.7, "voc2012_ar_1000": 52.6},
        notes="Proposals without a class: num_classes changes nothing. In training half of the "
        "images are rescaled so that an object drawn at random is at the canonical size, half by "
        "one of `scales`. The mask loss is a mean, not a sum, over a window's cells, "
        "and their targets are the object's shares of them.",
        min_size=64,
    )
}
STRIDE = 8
# Of a window's side that an object's longer side takes at the canonical scale, as DeepMask.
CANONICAL = 128 / 224
SCALES = tuple(1.5**step for step in range(-4, 2))
MATCH_OCTAVES = 0.3  # half a step of the scales


@dataclass(frozen=True)
class AssemblyOptions:
    """Options of `instance_fcn` that say how windows are drawn and kept."""

    grid: int
    window: int
    windows_per_image: int
    scales: tuple[float, ...]
    nms_thresh: float
    pre_nms_top_n: int
    detections_per_img: int

    @property
    def side(self) -> int:
        """Of a window in pixels."""
        return self.window * STRIDE


class InstanceFCN(nn.Module):
    """Instance-sensitive maps and objectness, each from its own branch on stride 8.

    Args:
        trunk: to features of stride 8.
        channels: of them.
        prepare: of images and targets.
        options: of the windows.

    Shape:
        images: list of float [in_channels, H, W], of any sizes
        targets: list of dict with "boxes" [n, 4], "labels" [n], "masks" [n, H, W]
        returns: in training a dict of losses; else a list of dict with "boxes" [m, 4], "labels"
            [m] (1), "scores" [m] (descending) and "masks" float [m, 1, H, W]
    """

    proposals = True  # one label for all: nothing tells their classes

    def __init__(
        self, trunk: nn.Sequential, channels: int, prepare: Preparation, options: AssemblyOptions
    ) -> None:
        super().__init__()
        self.trunk = trunk
        relu = nn.ReLU(inplace=True)
        maps = nn.Conv2d(512, options.grid**2, 3, padding=1), nn.Conv2d(512, 1, 1)
        hidden = nn.Conv2d(channels, 512, 1), nn.Conv2d(channels, 512, 3, padding=1)
        for layer in (*hidden, *maps):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        for layer in hidden:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        for layer in maps:
            nn.init.normal_(layer.weight, std=0.01)
        self.instance = nn.Sequential(hidden[0], relu, maps[0])
        self.score = nn.Sequential(hidden[1], relu, maps[1])
        self.prepare, self.options = prepare, options

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        batch, prepared = self.prepare(images, targets, training=self.training)
        sizes = zip(batch.tensor, batch.sizes, strict=True)
        alone = [image[:, :height, :width] for image, (height, width) in sizes]
        if self.training:
            return self.losses(alone, prepared)
        pairs = zip(alone, batch.originals, strict=True)
        return [self.propose(image, original) for image, original in pairs]

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Instance-sensitive maps [N, k * k, h, w] and objectness logits [N, h, w]."""
        features = self.trunk(pad_to_multiple(x, STRIDE))
        return self.instance(features).float(), self.score(features)[:, 0].float()

    def losses(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Objectness of the drawn windows, and the pixels of the positive ones."""
        factors = [self._draw_scale(target["boxes"]) for target in targets]
        scaled = [rescale(image, factor) for image, factor in zip(images, factors, strict=True)]
        full = [max(image.shape[axis] for image in scaled) for axis in (1, 2)]
        x = torch.stack(
            [F.pad(i, (0, full[1] - i.shape[2], 0, full[0] - i.shape[1])) for i in scaled]
        )
        maps, scores = self.maps(x)
        pairs = zip(images, targets, scaled, strict=True)
        drawn = [self._draw(index, *pair) for index, pair in enumerate(pairs)]
        positive, truth, negative = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        masks = assemble(maps, self._corners(positive), size=self.options.window)
        chosen = torch.cat([positive, negative])
        logits = scores[chosen[:, 0], chosen[:, 1], chosen[:, 2]]
        signs = (torch.arange(len(chosen), device=x.device) < len(positive)).float()
        wrong = F.binary_cross_entropy_with_logits(masks, truth, reduction="sum")
        score = F.binary_cross_entropy_with_logits(logits, signs, reduction="sum")
        # The zeros join both branches to the graph whatever was drawn.
        return {
            "loss_mask": wrong / max(truth.numel(), 1) + 0 * maps.sum(),
            "loss_score": score / max(len(chosen), 1) + 0 * scores.sum(),
        }

    def _draw_scale(self, boxes: Tensor) -> float:
        """At which an object is canonical, or one of the scales."""
        o = self.options
        if len(boxes) and float(torch.rand(())) < 0.5:
            side = canonical_windows(boxes, CANONICAL)[int(torch.randint(len(boxes), ())), 2]
            octaves = (2 * float(torch.rand(())) - 1) * MATCH_OCTAVES
            factor = o.side / float(side) * 2**octaves
            return min(max(factor, min(o.scales)), max(o.scales))
        return o.scales[int(torch.randint(len(o.scales), ()))]

    def _draw(
        self, index: int, image: Tensor, target: Target, scaled: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Windows (image, row, column) of objects, their masks, and windows of none."""
        o = self.options
        cells = [math.ceil(side / STRIDE) for side in scaled.shape[1:]]
        factor = scaled.shape[2] / image.shape[2], scaled.shape[1] / image.shape[1]
        to_scaled = target["boxes"].new_tensor([*factor, *factor])
        objects = canonical_windows(target["boxes"] * to_scaled, CANONICAL)
        rows, columns = (torch.arange(count, device=image.device) for count in cells)
        places = torch.cartesian_prod(rows, columns).reshape(-1, 2)
        centres = (places.flip(1) + 0.5) * STRIDE
        distance = (centres[:, None] - objects[:, :2]).abs().amax(2) / o.side
        octaves = (o.side / objects[:, 2]).log2().abs().expand_as(distance)
        away = ((distance >= AWAY) | (octaves >= AWAY_OCTAVES)).all(1)
        # Within a cell, or objects between the positions of a coarse grid are never learned.
        reach = max(JITTER, 0.5 / o.window)
        fits = (distance <= reach) & (octaves <= MATCH_OCTAVES)
        owner = distance.masked_fill(~fits, torch.inf)
        positive = some(fits.any(1), o.windows_per_image // 2)
        negative = some(away, o.windows_per_image // 2)
        own = owner[positive].argmin(1) if len(objects) else positive
        windows = self._windows(places[positive]) / to_scaled
        masks = crop_windows(target["masks"][own], windows, o.window, each=True)
        named = F.pad(places, (1, 0), value=index)
        return named[positive], masks, named[negative]

    def _corners(self, places: Tensor) -> Tensor:
        """(image, top, left) in map cells of windows centred at (image, row, column)."""
        return places - places.new_tensor([0, self.options.window // 2, self.options.window // 2])

    def _windows(self, places: Tensor) -> Tensor:
        """Boxes in pixels of windows centred at the cells (row, column)."""
        corner = (places.flip(1) - self.options.window // 2).float() * STRIDE
        return torch.cat([corner, corner + self.options.side], 1)

    def propose(self, image: Tensor, original: tuple[int, int]) -> dict[str, Tensor]:
        """Objects of one image: the best windows of all scales, NMS on the masks' boxes."""
        o = self.options
        found = [self.dense(image, factor) for factor in o.scales]
        scores, masks, windows = (torch.cat(parts) for parts in zip(*found, strict=True))
        scores, order = scores.topk(min(o.pre_nms_top_n, len(scores)))
        masks = masks[order]
        windows = resize_boxes(windows[order], (image.shape[1], image.shape[2]), original)
        return keep_proposals(
            masks, windows, scores, original, nms_thresh=o.nms_thresh, most=o.detections_per_img
        )

    def dense(self, image: Tensor, factor: float) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [P], masks [P, window, window] and windows [P, 4] of one scale's best positions.

        Positions are the cells of the image; windows reach beyond it.
        """
        o = self.options
        scaled = rescale(image, factor)
        maps, scores = self.maps(scaled[None])
        values, order = scores.flatten().topk(min(o.pre_nms_top_n, scores.numel()))
        places = torch.stack([order // scores.shape[2], order % scores.shape[2]], 1)
        masks = assemble(maps, self._corners(F.pad(places, (1, 0))), size=o.window).sigmoid()
        ratio = scaled.shape[2] / image.shape[2], scaled.shape[1] / image.shape[1]
        windows = self._windows(places) / maps.new_tensor([*ratio, *ratio])
        return values.sigmoid(), masks, windows


def rescale(image: Tensor, factor: float) -> Tensor:
    """[C, H, W] resized by a factor, with areas averaged where it shrinks."""
    size = [max(STRIDE, round(side * factor)) for side in image.shape[1:]]
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]


def some(allowed: Tensor, count: int) -> Tensor:
    """Index of at most `count` True places, drawn at random."""
    places = allowed.nonzero()[:, 0]
    return places[torch.randperm(len(places), device=places.device)[:count]]


def instance_fcn(
    *,
    num_classes: int = 2,
    in_channels: int = 3,
    pretrained: bool = False,
    backbone: str = "vgg16",
    grid: int = 5,
    window: int = 21,
    windows_per_image: int = 256,
    scales: Sequence[float] = SCALES,
    nms_thresh: float = 0.8,
    pre_nms_top_n: int = 1000,
    detections_per_img: int = 300,
    min_size: int | Sequence[int] | None = None,
    max_size: int | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> InstanceFCN:
    """InstanceFCN; the defaults are the paper's VGG-16 network, but images keep their size.

    Args:
        num_classes: changes nothing: proposals have no class.
        in_channels: channels of the images.
        pretrained: ImageNet weights in the backbone.
        backbone: a vgg or resnet; strides beyond 8 become dilation.
        grid: k, of the k x k maps.
        window: m, side of a window in cells of 8 px; objects are 4 / 7 of it at their scale.
        windows_per_image: training windows of an image, at most half of them positive.
        scales: of the image (after min_size: the paper's is 600) at which windows are evaluated.
        nms_thresh: overlap from which NMS drops the weaker of two masks' boxes.
        pre_nms_top_n: best windows before it.
        detections_per_img: proposals of an image.
        min_size, max_size, image_mean, image_std: as `Preparation`.

    Raises:
        OptionError: a value that an option does not have.
    """
    if not 1 <= grid <= window:
        raise OptionError(f"grid is {grid} and window {window}: give 1 <= grid <= window")
    if not scales or min(scales) <= 0:
        raise OptionError(f"scales are {scales!r}: give factors above 0")
    trunk, channels = dilated_trunk(
        backbone, STRIDE, in_channels=in_channels, pretrained=pretrained
    )
    options = AssemblyOptions(
        grid=grid,
        window=window,
        windows_per_image=windows_per_image,
        scales=tuple(scales),
        nms_thresh=nms_thresh,
        pre_nms_top_n=pre_nms_top_n,
        detections_per_img=detections_per_img,
    )
    prepare = Preparation(in_channels, min_size, max_size, image_mean, image_std)
    return InstanceFCN(trunk, channels, prepare, options)
