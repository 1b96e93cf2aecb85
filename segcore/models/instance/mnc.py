"""MNC: a cascade of boxes, masks in the boxes, and categories of the masks, learned end to end.

Reference: Dai, He & Sun 2016, arXiv:1512.04412; layers as the authors' release.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.errors import OptionError
from segcore.models.blocks import check_choice, resize
from segcore.models.card import ModelCard
from segcore.models.detection.anchors import Anchors
from segcore.models.detection.boxes import to_rois
from segcore.models.detection.cascade import (
    BOX_GRADIENT,
    BOX_WEIGHTS,
    mask_labels,
    match_again,
    refine,
)
from segcore.models.detection.heads import WideLinear
from segcore.models.detection.images import ImageBatch, Preparation, Target, resize_boxes
from segcore.models.detection.roi import DrawnRoIs, RoIOptions, box_losses, draw_rois, mask_loss
from segcore.models.detection.roi_pool import roi_warp
from segcore.models.detection.rpn import RPN, RPNOptions
from segcore.models.detection.trunk import trunk_to_stride
from segcore.models.detection.voting import VotingOptions, vote_detections

CARDS = {
    "mnc": ModelCard(
        name="mnc",
        title="MNC",
        paper="Dai, He & Sun 2016, Instance-aware Semantic Segmentation via Multi-task Network "
        "Cascades, arXiv:1512.04412",
        year=2016,
        task="instance",
        parameters=283_113_467,
        published={
            "voc2012_map_r_50": 63.5,
            "voc2012_map_r_70": 41.5,
            "coco_test_dev_mask_ap": 19.5,
            "coco_test_dev_mask_ap_50": 39.7,
        },
        notes="Masks of 28 x 28; the release has mask_size=21 and twice the weight on their loss. "
        "283,118,084 parameters there, as it has two logits of objectness an anchor. Weights of "
        "the widest layers are scaled in use. Anchors are smaller: images are not enlarged.",
        min_size=64,
    )
}
STRIDE = 16
STAGES = (3, 5)
ROI_SIZE = 14  # of the warped features; half of it reaches the fully connected layers
RPN_HIDDEN = 512
ANCHOR_SIZES = ((16, 40, 100),)


@dataclass(frozen=True, eq=False)
class StageOutputs:
    """What one pass of masks and categories says of each RoI.

    Args:
        masks: logits [R, mask_size, mask_size].
        box_logits, logits: [R, K], class of the box (only learned from) and of the mask.
        codes: [R, K, 4] of the boxes.
    """

    masks: Tensor
    box_logits: Tensor
    logits: Tensor
    codes: Tensor


class CascadeHeads(nn.Module):
    """Stages 2 and 3: a mask from the warped features, categories from them with and without it.

    Args:
        in_channels: of the features.
        num_classes: with background.
        mask_hidden: of the layer before the mask.
        mask_size: side of the mask.
        hidden: of the two layers of each of the two pathways.
    """

    def __init__(
        self, in_channels: int, num_classes: int, *, mask_hidden: int, mask_size: int, hidden: int
    ) -> None:
        super().__init__()
        self.mask_size = mask_size
        self.mask = nn.Sequential(
            nn.Flatten(),
            WideLinear(in_channels * ROI_SIZE**2, mask_hidden),
            nn.ReLU(inplace=True),
            nn.Linear(mask_hidden, mask_size**2),
        )
        self.box_path = _pathway(in_channels, hidden)
        self.mask_path = _pathway(in_channels, hidden)
        self.box_score = nn.Linear(2 * hidden, num_classes)
        self.mask_score = nn.Linear(2 * hidden, num_classes)
        self.code = nn.Linear(2 * hidden, 4 * num_classes)
        for layer in self.modules():
            if type(layer) is nn.Linear:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        last = [layer for layer in self.mask if isinstance(layer, nn.Linear)][-1]
        for layer in (last, self.box_score, self.mask_score, self.code):
            nn.init.normal_(layer.weight, std=0.01)

    def forward(self, features: Tensor, rois: Tensor) -> StageOutputs:
        """Outputs of RoIs [R, 5], with a gradient to their boxes, from [N, in_channels, H, W]."""
        warped = roi_warp(features, rois, ROI_SIZE, 1 / STRIDE)
        masks = self.mask(warped).to(rois).view(-1, 1, self.mask_size, self.mask_size)
        masked = warped * resize(masks.sigmoid(), (ROI_SIZE, ROI_SIZE))
        joint = torch.cat([self.mask_path(masked), self.box_path(warped)], 1)
        box_logits, logits, codes = (
            layer(joint).to(rois) for layer in (self.box_score, self.mask_score, self.code)
        )
        return StageOutputs(masks[:, 0], box_logits, logits, codes.unflatten(1, (-1, 4)))


def _pathway(in_channels: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.MaxPool2d(2),
        nn.Flatten(),
        WideLinear(in_channels * (ROI_SIZE // 2) ** 2, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
    )


class MNC(nn.Module):
    """RPN, then one or two passes of the same heads, the second in the boxes that the first gave.

    Args:
        trunk: to features of stride 16.
        rpn: over them, with a gradient through its boxes.
        heads: of both passes.
        stages: of the training, 3 (one pass) or 5 (two); evaluation has 5.
        prepare: of images and targets.
        sampling: of the RoIs that are learned from.
        voting: of the detections.

    Shape:
        images: list of float [in_channels, H, W], of any sizes
        targets: list of dict with "boxes" [n, 4], "labels" [n], "masks" [n, H, W]
        returns: in training a dict of losses; else a list of dict with "boxes" [m, 4], "labels"
            [m], "scores" [m] (descending) and "masks" float [m, 1, H, W]
    """

    def __init__(
        self,
        trunk: nn.Sequential,
        rpn: RPN,
        heads: CascadeHeads,
        *,
        stages: int,
        prepare: Preparation,
        sampling: RoIOptions,
        voting: VotingOptions,
    ) -> None:
        super().__init__()
        self.trunk, self.rpn, self.heads = trunk, rpn, heads
        self.stages, self.prepare = stages, prepare
        self.sampling, self.voting = sampling, voting

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        batch, prepared = self.prepare(images, targets, training=self.training)
        features = self.trunk(batch.tensor)
        if self.training:
            return self.losses(features, batch, prepared)
        return self.detections(features, batch)

    def losses(
        self, features: Tensor, batch: ImageBatch, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Of the RPN and of every pass, whose gradients reach the boxes that it looked into."""
        objects = [target["boxes"] for target in targets]
        found = self.rpn([features], batch.sizes, batch.padded, objects)
        drawn = draw_rois(found.boxes, targets, self.sampling)
        losses = dict(found.losses)
        for stage in range(3, self.stages + 1, 2):
            outputs = self.heads(features, drawn.rois)
            for name, value in self._pass_losses(outputs, drawn, targets).items():
                losses[f"{name}_{stage}"] = value
            if stage < self.stages:
                # By the code of the object's class, or of the likeliest where there is none.
                likeliest = outputs.logits[:, 1:].argmax(1) + 1
                label = torch.where(drawn.labels > 0, drawn.labels, likeliest)
                moved = refine(outputs.codes, drawn.rois, label, batch.sizes)
                drawn = match_again(moved, targets)
        return losses

    def _pass_losses(
        self, outputs: StageOutputs, drawn: DrawnRoIs, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Box and class of the boxes, masks of the positives, class of the masks."""
        fixed = replace(drawn, rois=drawn.rois.detach())
        positive = drawn.labels.nonzero()[:, 0]
        wanted = mask_labels(outputs.masks.detach(), fixed, targets)
        count = max(len(wanted), 1)
        category = F.cross_entropy(outputs.logits, wanted, reduction="sum") / count
        # The same mask for every class: the label only picks it.
        own = replace(fixed, labels=torch.zeros_like(fixed.labels))
        masks = mask_loss(outputs.masks[positive, None], own, positive, targets)
        return {
            **box_losses(outputs.box_logits, outputs.codes, fixed, BOX_WEIGHTS),
            "loss_mask": masks + 0 * outputs.masks.sum(),
            "loss_mask_class": category,
        }

    def detections(self, features: Tensor, batch: ImageBatch) -> list[dict[str, Tensor]]:
        """Instances of both passes as candidates; NMS and voting."""
        found = self.rpn([features], batch.sizes, batch.padded)
        first = to_rois(found.boxes)
        outputs = self.heads(features, first)
        likeliest = outputs.logits[:, 1:].argmax(1) + 1
        second = refine(outputs.codes, first, likeliest, batch.sizes)
        again = self.heads(features, second)
        rois = torch.cat([first, second])
        probabilities = torch.cat([outputs.logits, again.logits]).softmax(1)
        masks = torch.cat([outputs.masks, again.masks]).sigmoid()
        results = []
        for image, (size, original) in enumerate(zip(batch.sizes, batch.originals, strict=True)):
            own = (rois[:, 0] == image).nonzero()[:, 0]
            boxes = resize_boxes(rois[own, 1:], size, original)
            results.append(
                vote_detections(probabilities[own], boxes, masks[own], original, self.voting)
            )
        return results


def mnc(
    *,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    backbone: str = "vgg16",
    stages: int = 5,
    mask_size: int = 28,
    mask_hidden: int = 256,
    hidden: int = 4096,
    anchor_sizes: Sequence[Sequence[float]] = ANCHOR_SIZES,
    proposals: int = 300,
    rois_per_image: int = 64,
    box_score_thresh: float = 0.05,
    box_nms_thresh: float = 0.3,
    box_detections_per_img: int = 100,
    enlarge: float = 1.0,
    min_size: int | Sequence[int] | None = None,
    max_size: int | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> MNC:
    """MNC; the defaults are the paper's VGG-16 network.

    Args:
        num_classes: background and the classes of things.
        in_channels: channels of the images.
        pretrained: ImageNet weights in the backbone.
        backbone: a vgg or resnet; read at stride 16.
        stages: of the training, 3 or 5; evaluation has 5 with the same weights.
        mask_size: side of a mask, 28 as in the paper or 21 as released.
        mask_hidden, hidden: of the layers before the mask and before the categories.
        anchor_sizes: one tuple of side lengths in pixels.
        proposals, rois_per_image: after NMS, and of which the losses are computed.
        box_score_thresh, box_nms_thresh, box_detections_per_img: as `VotingOptions`.
        enlarge, min_size, max_size, image_mean, image_std: as `Preparation`.

    Raises:
        OptionError: a value that an option does not have.
    """
    check_choice("stages", stages, STAGES)
    if num_classes < 2:
        raise OptionError(f"num_classes is {num_classes}: background counts, so give at least 2")
    trunk, channels = trunk_to_stride(
        backbone, STRIDE, in_channels=in_channels, pretrained=pretrained
    )
    limits = RPNOptions(rpn_post_nms_top_n_train=proposals, rpn_post_nms_top_n_test=proposals)
    heads = CascadeHeads(
        channels, num_classes, mask_hidden=mask_hidden, mask_size=mask_size, hidden=hidden
    )
    return MNC(
        trunk,
        RPN(channels, Anchors(anchor_sizes), limits, hidden=RPN_HIDDEN, box_gradient=BOX_GRADIENT),
        heads,
        stages=stages,
        prepare=Preparation(in_channels, min_size, max_size, image_mean, image_std, enlarge),
        sampling=RoIOptions(box_batch_size_per_image=rois_per_image, bbox_reg_weights=BOX_WEIGHTS),
        voting=VotingOptions(
            box_score_thresh=box_score_thresh,
            box_nms_thresh=box_nms_thresh,
            box_detections_per_img=box_detections_per_img,
        ),
    )
