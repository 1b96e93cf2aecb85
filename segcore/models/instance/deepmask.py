"""DeepMask: is there an object centred in this window, and which pixels are its own?

Reference: Pinheiro, Collobert & Dollar 2015, arXiv:1506.06204, in its authors' ResNet version.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.errors import OptionError
from segcore.models.blocks import check_choice
from segcore.models.card import ModelCard
from segcore.models.detection.images import Preparation, Target, resize_boxes
from segcore.models.detection.trunk import trunk_to_stride
from segcore.models.detection.windows import (
    crop_windows,
    keep_proposals,
    negative_windows,
    positive_windows,
)

CARDS = {
    "deepmask": ModelCard(
        name="deepmask",
        title="DeepMask",
        paper="Pinheiro, Collobert & Dollar 2015, Learning to Segment Object Candidates, "
        "arXiv:1506.06204",
        year=2015,
        task="instance",
        parameters=75_844_545,
        counts={2: 75_844_545},
        published={"coco_ar_10": 12.6, "coco_ar_100": 24.5, "coco_ar_1000": 33.1},
        notes="Proposals without a class: num_classes changes nothing. A window is cut with one "
        "feature cell of context on each side, as the released code does, so that training sees "
        "what dense evaluation does. Mask targets are shares of the cells, not rounded. "
        "heads='shared' is the released ResNet version: 17,363,713 parameters for resnet50 and "
        "input_size=160.",
        min_size=64,
    )
}
STRIDE = 16
# Of a window's side, as the paper's 128 of 224 px.
CANONICAL = 128 / 224
SCALES = tuple(2 ** (step / 2) for step in range(-4, 3))
SCORE_WEIGHT = 1 / 32


@dataclass(frozen=True)
class WindowOptions:
    """Options of `deepmask` that say how windows are drawn and kept."""

    input_size: int
    mask_size: int
    windows_per_image: int
    scales: tuple[float, ...]
    mask_threshold: float
    nms_thresh: float
    pre_nms_top_n: int
    detections_per_img: int


class SeparateHeads(nn.Module):
    """The paper's branches: mask through a low rank, score behind another pooling.

    Shape:
        x: [N, in_channels, H, W]
        returns: score logits [N, H - cells + 1, W - cells + 1] and codes [N, 512, ...] of masks
    """

    def __init__(self, in_channels: int, cells: int, dropout: float) -> None:
        super().__init__()
        if cells % 2:
            raise OptionError(
                f"input_size is {cells * STRIDE}: heads='separate' takes a multiple of 32"
            )
        self.mask = nn.Sequential(
            nn.Conv2d(in_channels, 512, 1), nn.ReLU(inplace=True), nn.Conv2d(512, 512, cells)
        )
        # A 2x2 pooling of stride 2 and a dense layer, at every position: stride 1, dilation 2.
        self.score = nn.Sequential(
            nn.MaxPool2d(2, stride=1),
            nn.Conv2d(in_channels, 512, cells // 2, dilation=2),
            nn.ReLU(inplace=True),
            *_score_layers(dropout),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.score(x)[:, 0], self.mask(x)


class SharedHeads(nn.Module):
    """The released ResNet version: as `SeparateHeads`, but both branches read the code."""

    def __init__(self, in_channels: int, cells: int, dropout: float) -> None:
        super().__init__()
        self.mask = nn.Sequential(
            nn.Conv2d(in_channels, 128, 1), nn.ReLU(inplace=True), nn.Conv2d(128, 512, cells)
        )
        self.score = nn.Sequential(*_score_layers(dropout))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.mask(x)
        return self.score(code)[:, 0], code


def _score_layers(dropout: float) -> list[nn.Module]:
    hidden, score = nn.Conv2d(512, 1024, 1), nn.Conv2d(1024, 1, 1)
    return [nn.Dropout(dropout), hidden, nn.ReLU(inplace=True), nn.Dropout(dropout), score]


HEADS = {"separate": SeparateHeads, "shared": SharedHeads}


class DeepMask(nn.Module):
    """Windows in training, every position of every scale in evaluation.

    Args:
        trunk: to features of stride 16.
        heads: score and code of a mask at every position.
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
        self, trunk: nn.Sequential, heads: nn.Module, prepare: Preparation, options: WindowOptions
    ) -> None:
        super().__init__()
        self.trunk, self.heads = trunk, heads
        self.mask_head = nn.Linear(512, options.mask_size**2)
        self.prepare, self.options = prepare, options
        for module in [*heads.modules(), self.mask_head]:
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.mask_head.weight, std=0.01)

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

    def losses(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """The joint loss: masks of positive windows, and lambda times the scores of all."""
        drawn = [self._draw(image, target) for image, target in zip(images, targets, strict=True)]
        crops, truth, positive = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        scores, codes = self.heads(self.features(crops))
        logits = self.mask_head(codes.flatten(1)[positive]).float()
        masks = F.binary_cross_entropy_with_logits(logits, truth.flatten(1), reduction="none")
        score = F.binary_cross_entropy_with_logits(scores.flatten().float(), positive.float())
        # The last term joins the mask branch to the graph where there is no object.
        return {
            "loss_mask": masks.mean(1).sum() / len(crops) + 0 * codes.float().sum(),
            "loss_score": SCORE_WEIGHT * score,
        }

    def _draw(self, image: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        """Crops of one image's windows, masks of the positive ones, and which these are."""
        o = self.options
        boxes = target["boxes"]
        positive, owner = positive_windows(boxes, o.windows_per_image // 2, CANONICAL)
        sides = o.input_size / max(o.scales), o.input_size / min(o.scales)
        size = image.shape[1], image.shape[2]
        count = o.windows_per_image - len(positive)
        negative = negative_windows(boxes, size, count, CANONICAL, sides=sides)
        windows = torch.cat([positive, negative])
        crops = crop_windows(image, windows, o.input_size, margin=STRIDE / o.input_size)
        masks = crop_windows(target["masks"][owner], positive, o.mask_size, each=True)
        signs = torch.arange(len(windows), device=image.device) < len(positive)
        return crops, masks, signs

    def features(self, x: Tensor) -> Tensor:
        """Features of stride 16 without the outermost cell, which is context."""
        features: Tensor = self.trunk(x)
        return features[:, :, 1:-1, 1:-1]

    def propose(self, image: Tensor, original: tuple[int, int]) -> dict[str, Tensor]:
        """Objects of one image: the best positions of all scales, NMS on the masks' boxes."""
        o = self.options
        found = [self.dense(image, scale) for scale in o.scales]
        scores, codes, windows = (torch.cat(parts) for parts in zip(*found, strict=True))
        scores, order = scores.topk(min(o.pre_nms_top_n, len(scores)))
        size = image.shape[1], image.shape[2]
        windows = resize_boxes(windows[order], size, original)
        logits = self.mask_head(codes[order]).float().view(-1, o.mask_size, o.mask_size)
        # Evaluators cut at one half, so that is where the threshold is put.
        masks = (logits - math.log(o.mask_threshold / (1 - o.mask_threshold))).sigmoid()
        return keep_proposals(
            masks, windows, scores, original, nms_thresh=o.nms_thresh, most=o.detections_per_img
        )

    def dense(self, image: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [P], codes [P, 512] and windows [P, 4] at every position of one scale.

        The image is padded so that windows are centred up to its edges.
        """
        side = self.options.input_size
        size = [max(1, round(length * scale)) for length in image.shape[1:]]
        x = F.interpolate(image[None], size=size, mode="bilinear", antialias=True)
        margin = math.ceil(side / 2 / STRIDE) * STRIDE + STRIDE
        fill = [-length % STRIDE for length in size]
        x = F.pad(x, (margin, margin + fill[1], margin, margin + fill[0]))
        scores, codes = self.heads(self.features(x))
        rows, columns = (
            torch.arange(count, device=image.device) * STRIDE + STRIDE - margin
            for count in scores.shape[1:]
        )
        top, left = torch.meshgrid(rows, columns, indexing="ij")
        corner = torch.stack([left, top], -1).reshape(-1, 2).float()
        factor = corner.new_tensor([size[1] / image.shape[2], size[0] / image.shape[1]])
        windows = torch.cat([corner / factor, (corner + side) / factor], 1)
        return scores[0].flatten().float().sigmoid(), codes[0].flatten(1).T, windows


def deepmask(
    *,
    num_classes: int = 2,
    in_channels: int = 3,
    pretrained: bool = False,
    backbone: str = "vgg11",
    heads: str = "separate",
    input_size: int = 224,
    mask_size: int = 56,
    dropout: float = 0.5,
    windows_per_image: int = 32,
    scales: Sequence[float] = SCALES,
    mask_threshold: float = 0.2,
    nms_thresh: float = 0.7,
    pre_nms_top_n: int = 1000,
    detections_per_img: int = 300,
    min_size: int | Sequence[int] | None = None,
    max_size: int | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> DeepMask:
    """DeepMask; the defaults are the paper's VGG-A network.

    Args:
        num_classes: changes nothing: proposals have no class.
        in_channels: channels of the images.
        pretrained: ImageNet weights in the backbone.
        backbone: one with features of stride 16.
        heads: "separate" as in the paper, "shared" as the released ResNet version.
        input_size: side of a window in pixels; objects are 4 / 7 of it at the canonical scale.
        mask_size: side of a predicted mask.
        dropout: in the score branch.
        windows_per_image: training windows of an image, half of them positive.
        scales: of the image at which windows are evaluated.
        mask_threshold: probability from which a pixel is the object's (0.2 for COCO, 0.1 for VOC);
            masks come shifted so that it lies at 0.5.
        nms_thresh: overlap from which NMS drops the weaker of two masks' boxes.
        pre_nms_top_n: best windows before it.
        detections_per_img: proposals of an image.
        min_size, max_size, image_mean, image_std: as `Preparation`.

    Raises:
        OptionError: a value that an option does not have.
    """
    check_choice("heads", heads, HEADS)
    if input_size < 2 * STRIDE or input_size % STRIDE:
        raise OptionError(
            f"input_size is {input_size}: give a multiple of {STRIDE}, at least {2 * STRIDE}"
        )
    if not 0 < mask_threshold < 1:
        raise OptionError(f"mask_threshold is {mask_threshold}: give a probability in 0..1")
    trunk, channels = trunk_to_stride(
        backbone, STRIDE, in_channels=in_channels, pretrained=pretrained
    )
    return DeepMask(
        trunk,
        HEADS[heads](channels, input_size // STRIDE, dropout),
        Preparation(in_channels, min_size, max_size, image_mean, image_std),
        WindowOptions(
            input_size=input_size,
            mask_size=mask_size,
            windows_per_image=windows_per_image,
            scales=tuple(scales),
            mask_threshold=mask_threshold,
            nms_thresh=nms_thresh,
            pre_nms_top_n=pre_nms_top_n,
            detections_per_img=detections_per_img,
        ),
    )
