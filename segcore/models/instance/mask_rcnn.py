"""Mask R-CNN: proposals, aligned features of each box, and a class, a box and a mask from them.

Reference: He et al. 2017, arXiv:1703.06870; weights and thresholds as torchvision's
maskrcnn_resnet50_fpn.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from segcore.models.card import ModelCard
from segcore.models.detection.images import Target
from segcore.models.detection.two_stage import TwoStage, two_stage_parts

CARDS = {
    "mask_rcnn": ModelCard(
        name="mask_rcnn",
        title="Mask R-CNN",
        paper="He et al. 2017, Mask R-CNN, arXiv:1703.06870",
        year=2017,
        task="instance",
        parameters=44_077_773,
        counts={91: 44_454_513},
        published={
            "coco_test_dev_mask_ap_r101_c4": 33.1,
            "coco_test_dev_mask_ap_r101_fpn": 35.7,
            "coco_val_mask_ap_torchvision_r50_fpn": 34.6,
        },
        notes="With norm='frozen' the count at 91 classes is torchvision's 44,401,393. Trained "
        "from scratch by default: batch norm of the backbone learns, anchors are a quarter of "
        "torchvision's because images are not enlarged to 800 px, pixel centres lie at half "
        "integers. `TORCHVISION` holds the options that give torchvision's network.",
    )
}

# Options of `mask_rcnn` under which it is torchvision's maskrcnn_resnet50_fpn.
TORCHVISION = {
    "backbone": "resnet50",
    "norm": "frozen",
    "aligned": False,
    "anchor_sizes": ((32,), (64,), (128,), (256,), (512,)),
    "min_size": 800,
    "max_size": 1333,
    "image_mean": (0.485, 0.456, 0.406),
    "image_std": (0.229, 0.224, 0.225),
}

# Starts of torchvision's parameter names and ours.
RENAMED = {
    "backbone.body.": "encoder.trunk.",
    "backbone.fpn.inner_blocks.": "neck.lateral.",
    "backbone.fpn.layer_blocks.": "neck.output.",
    "rpn.head.conv.0.0.": "rpn.head.conv.",
    "rpn.head.": "rpn.head.",
    "roi_heads.box_head.": "heads.",
    "roi_heads.box_predictor.": "heads.box_predictor.",
    "roi_heads.mask_head.": "heads.mask_head.",
    "roi_heads.mask_predictor.conv5_mask.": "heads.mask_predictor.upsample.",
    "roi_heads.mask_predictor.mask_fcn_logits.": "heads.mask_predictor.score.",
}


class MaskRCNN(TwoStage):
    """In training losses, in eval detections.

    Shape:
        images: list of float [in_channels, H, W], sizes may differ
        returns: dict of scalars, or list of {"boxes" [m, 4], "labels" [m], "scores" [m],
            "masks" [m, 1, H, W]}
    """

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        batch, prepared = self.prepare(images, targets, training=self.training)
        features = self.features(batch)
        if self.training:
            return self.losses(features, batch, prepared)
        return self.detections(features, batch)


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of torchvision's maskrcnn_resnet50_fpn state_dict in ours.

    `create_model("mask_rcnn", num_classes=91, **TORCHVISION).load_state_dict(from_torchvision(s))`
    gives torchvision's detections. (Its COCO_V1 weights were made with a batch-norm eps of 0.)
    """
    renamed = {}
    for key, value in state.items():
        start = next((start for start in RENAMED if key.startswith(start)), "")
        renamed[RENAMED.get(start, "") + key.removeprefix(start)] = value
    return renamed


def mask_rcnn(
    *,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    backbone: str = "resnet50",
    neck: str = "fpn",
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
) -> MaskRCNN:
    """Mask R-CNN with torchvision's names of options; `TORCHVISION` makes it torchvision's.

    Args:
        num_classes: with background, at least 2.
        in_channels: channels of the images.
        pretrained: ImageNet weights in the backbone.
        backbone: for "fpn" any encoder with features of strides 4, 8, 16, 32; for "c4" a resnet.
        neck: "fpn", or "c4": proposals at stride 16 and the fifth stage in the head.
        norm: of the backbone; "batch" learns, "frozen" keeps a checkpoint's, "group" suits batches
            of one.
        head_norm: in FPN and mask head: None (as published), "batch" or "group".
        fpn_channels, box_hidden, mask_convs: widths and depth of neck and heads ("fpn").
        roi_pool: "align", "pool" or "warp", see `segcore.models.detection.roi_pool`.
        aligned: pixel centres at half integers (torchvision's models: False).
        anchor_sizes: tuple of sizes in pixels for each level: strides 4, 8, 16, 32, 64 ("fpn"; by
            default 8 to 128) or 16 ("c4").
        enlarge, min_size, max_size, image_mean, image_std: see
            `segcore.models.detection.images.Preparation`.
        rpn_pre_nms_top_n_train: this and the other rpn_*: see `RPNOptions` in
            `segcore.models.detection.rpn`.
        box_score_thresh: this and the rest: see `RoIOptions` in `segcore.models.detection.roi`.

    Raises:
        OptionError: a value that an option does not have.
    """
    return MaskRCNN(**two_stage_parts(dict(locals())))
