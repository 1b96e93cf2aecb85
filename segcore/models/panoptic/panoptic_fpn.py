"""Panoptic FPN: one pyramid, Mask R-CNN's heads for things, a dense head for stuff.

Reference: Kirillov et al. 2019, Panoptic Feature Pyramid Networks, arXiv:1901.02446.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from segcore.errors import OptionError, ShapeError
from segcore.models.blocks import crop_to, make_norm, resize
from segcore.models.card import ModelCard
from segcore.models.detection.images import ImageBatch, Target
from segcore.models.detection.two_stage import TwoStage, two_stage_parts

CARDS = {
    "panoptic_fpn": ModelCard(
        name="panoptic_fpn",
        title="Panoptic FPN",
        paper="Kirillov et al. 2019, Panoptic Feature Pyramid Networks, arXiv:1901.02446",
        year=2019,
        task="panoptic",
        parameters=45_708_547,
        published={
            "coco_val_pq_r50_detectron2_1x": 39.4,
            "coco_val_pq_r50_detectron2_3x": 41.5,
            "coco_test_dev_pq_r101": 40.9,
        },
        notes="num_classes counts the things and background, num_stuff the stuff (53 in COCO); the "
        "dense head has one more class for any thing. Loss weights 1 and 0.5, as detectron2's.",
    )
}
HIDDEN = 128
UPSAMPLINGS = (0, 1, 2, 3)  # of strides 4, 8, 16, 32, down to stride 4
IGNORED = 255
FINEST_STRIDE = 4


class SemanticHead(nn.Module):
    """Each level by 3x3 convolutions and x2 bilinear steps to stride 4; their sum; 1x1; x4.

    Args:
        in_channels: of the pyramid.
        num_classes: channels of the logits.

    Shape:
        levels: four of [N, in_channels, H / 2^i, W / 2^i]
        returns: [N, num_classes, 4H, 4W]
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(self._level(in_channels, steps) for steps in UPSAMPLINGS)
        self.score = nn.Conv2d(HIDDEN, num_classes, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]

    @staticmethod
    def _level(in_channels: int, steps: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for index in range(max(1, steps)):
            channels = in_channels if index == 0 else HIDDEN
            conv = nn.Conv2d(channels, HIDDEN, 3, padding=1, bias=False)
            layers += [conv, make_norm("group", HIDDEN), nn.ReLU(inplace=True)]
            if steps:
                layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        return nn.Sequential(*layers)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        total, *others = (head(x) for head, x in zip(self.levels, levels, strict=True))
        for other in others:
            total = total + other
        logits = self.score(total).float()
        return F.interpolate(logits, scale_factor=FINEST_STRIDE, mode="bilinear")


class PanopticFPN(TwoStage):
    """In training losses, in eval detections with semantic logits.

    Shape:
        images: list of float [in_channels, H, W], sizes may differ
        returns: dict of scalars, or list of {"boxes" [m, 4], "labels" [m], "scores" [m],
            "masks" [m, 1, H, W], "semantic" [num_stuff + 1, H, W]}
    """

    def __init__(
        self,
        channels: int,
        num_stuff: int,
        *,
        semantic_weight: float,
        **parts: Any,
    ) -> None:
        super().__init__(**parts)
        self.semantic = SemanticHead(channels, num_stuff + 1)
        self.semantic_weight = semantic_weight

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        batch, prepared = self.prepare(images, targets, training=self.training)
        features = self.features(batch)
        logits = self.semantic(features[: len(UPSAMPLINGS)])
        if self.training:
            semantic = self.semantic_weight * semantic_loss(logits, batch, prepared)
            return {**self.losses(features, batch, prepared), "loss_semantic": semantic}
        results = self.detections(features, batch)
        sizes = zip(results, logits, batch.sizes, batch.originals, strict=True)
        for result, own, size, original in sizes:
            result["semantic"] = resize(crop_to(own[None], size), original)[0]
        return results


def semantic_loss(logits: Tensor, batch: ImageBatch, targets: Sequence[Target]) -> Tensor:
    """Cross-entropy over the pixels of the images that are not 255; padding is left out.

    Args:
        logits: [N, S + 1, H, W]
        batch: with the images' sizes.
        targets: with "semantic" int64 [h, w]: stuff 0..S-1, S for any thing, 255 ignored.

    Raises:
        ShapeError: a target has no such map of its image's size.
    """
    truth = logits.new_full((len(logits), *logits.shape[2:]), IGNORED).long()
    for place, target, size in zip(truth, targets, batch.sizes, strict=True):
        semantic = target.get("semantic")
        if semantic is None or tuple(semantic.shape) != size:
            given = "missing" if semantic is None else f"of shape {tuple(semantic.shape)}"
            raise ShapeError(f"'semantic' of a target is {given}: give int64 {size}")
        place[: size[0], : size[1]] = semantic
    total = F.cross_entropy(logits, truth, ignore_index=IGNORED, reduction="sum")
    return total / (truth != IGNORED).sum().clamp(min=1)


def panoptic_fpn(
    *,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    num_stuff: int = 53,
    semantic_weight: float = 0.5,
    backbone: str = "resnet50",
    norm: str = "batch",
    head_norm: str | None = None,
    fpn_channels: int = 256,
    box_hidden: int = 1024,
    mask_convs: int = 4,
    roi_pool: str = "align",
    aligned: bool = True,
    anchor_sizes: Sequence[Sequence[float]] | None = None,
    enlarge: float = 1.0,
    min_size: int | Sequence[int] | None = None,
    max_size: int | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    rpn_pre_nms_top_n_train: int = 2000,
    rpn_pre_nms_top_n_test: int = 1000,
    rpn_post_nms_top_n_train: int = 2000,
    rpn_post_nms_top_n_test: int = 1000,
    rpn_nms_thresh: float = 0.7,
    rpn_fg_iou_thresh: float = 0.7,
    rpn_bg_iou_thresh: float = 0.3,
    rpn_batch_size_per_image: int = 256,
    rpn_positive_fraction: float = 0.5,
    rpn_score_thresh: float = 0.0,
    box_score_thresh: float = 0.05,
    box_nms_thresh: float = 0.5,
    box_detections_per_img: int = 100,
    box_fg_iou_thresh: float = 0.5,
    box_bg_iou_thresh: float = 0.5,
    box_batch_size_per_image: int = 512,
    box_positive_fraction: float = 0.25,
    bbox_reg_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
    mask_batch_size_per_image: int | None = None,
) -> PanopticFPN:
    """Panoptic FPN; `segcore.inference.panoptic.merge` makes segments of what it returns.

    Args:
        num_classes: things with background, at least 2.
        in_channels: channels of the images.
        pretrained: ImageNet weights in the backbone.
        num_stuff: stuff classes.
        semantic_weight: of the stuff loss beside the instance losses.
        backbone: any encoder with features of strides 4, 8, 16, 32.
        norm: this and the rest: as `mask_rcnn` with neck "fpn".

    Raises:
        OptionError: a value that an option does not have.
    """
    options = {**locals(), "neck": "fpn"}
    if num_stuff < 1:
        raise OptionError(f"num_stuff is {num_stuff}: without stuff take 'mask_rcnn'")
    parts = two_stage_parts(options)
    return PanopticFPN(fpn_channels, num_stuff, semantic_weight=semantic_weight, **parts)
