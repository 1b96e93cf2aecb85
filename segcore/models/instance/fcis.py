"""FCIS: inside and outside maps that detect and segment at once.

Reference: Li, Qi, Dai, Ji & Wei 2017, Fully Convolutional Instance-aware Semantic Segmentation,
arXiv:1611.07709; channels as the authors' release.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.encoders import Encoder, create_encoder
from segcore.errors import OptionError
from segcore.models.card import ModelCard
from segcore.models.detection.anchors import Anchors
from segcore.models.detection.boxes import clip_rois, decode, encode, to_rois
from segcore.models.detection.images import ImageBatch, Preparation, Target, resize_boxes
from segcore.models.detection.masks import crop_masks
from segcore.models.detection.position_sensitive import pool
from segcore.models.detection.roi import DrawnRoIs, RoIOptions, draw_rois
from segcore.models.detection.rpn import RPN, RPNOptions
from segcore.models.detection.voting import VotingOptions, vote_detections

CARDS = {
    "fcis": ModelCard(
        name="fcis",
        title="FCIS",
        paper="Li, Qi, Dai, Ji & Wei 2017, Fully Convolutional Instance-aware Semantic "
        "Segmentation, arXiv:1611.07709",
        year=2017,
        task="instance",
        parameters=51_851_775,
        counts={81: 57_878_775},
        published={
            "voc2012_map_r_50": 65.7,
            "voc2012_map_r_70": 52.1,
            "coco_test_dev_mask_ap": 29.2,
            "coco_test_dev_mask_ap_50": 49.5,
        },
        notes="The release's network of 51,856,392 parameters but for the objectness, which is one "
        "logit an anchor here and two there (4,617 fewer). Box regression is the release's: a "
        "background and an object code for all classes; the paper has one. Anchors are smaller "
        "because images are not enlarged to 600 px. Mask targets are shares of the bins.",
        min_size=64,
    )
}
STRIDE = 16
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SEG_WEIGHT = 10.0
RPN_HIDDEN = 512
ANCHOR_SIZES = ((16, 40, 100),)


@dataclass(frozen=True, eq=False)
class RoIScores:
    """What the maps say of each RoI.

    Args:
        logits: [R, K] of the classes.
        inside: [R, K, size, size], logit of inside against outside.
        codes: [R, 4] of the boxes.
    """

    logits: Tensor
    inside: Tensor
    codes: Tensor


class FCIS(nn.Module):
    """RPN on the fourth stage, position-sensitive maps on the dilated fifth.

    Args:
        encoder: of output stride 16; its last two features are read.
        num_classes: with background.
        rpn: on the last but one feature.
        prepare: of images and targets.
        voting: of the detections.
        options: `grid`, `roi_size`, `hidden`, `rois_per_image`, `hard_examples` of `fcis`.

    Shape:
        images: list of float [in_channels, H, W], of any sizes
        targets: list of dict with "boxes" [n, 4], "labels" [n], "masks" [n, H, W]
        returns: in training a dict of losses; else a list of dict with "boxes" [m, 4], "labels"
            [m], "scores" [m] (descending) and "masks" float [m, 1, H, W]
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        *,
        rpn: RPN,
        prepare: Preparation,
        voting: VotingOptions,
        grid: int,
        roi_size: int,
        hidden: int,
        rois_per_image: int,
        hard_examples: int,
    ) -> None:
        super().__init__()
        self.encoder, self.rpn = encoder, rpn
        self.reduce = nn.Conv2d(encoder.out_channels[-1], hidden, 1)
        self.score = nn.Conv2d(hidden, 2 * num_classes * grid**2, 1)
        self.box = nn.Conv2d(hidden, 8 * grid**2, 1)
        self.num_classes, self.grid, self.roi_size = num_classes, grid, roi_size
        self.prepare, self.voting = prepare, voting
        self.sampling = RoIOptions(
            box_batch_size_per_image=rois_per_image,
            box_positive_fraction=1.0,
            bbox_reg_weights=BOX_WEIGHTS,
        )
        self.hard_examples = hard_examples
        nn.init.kaiming_normal_(self.reduce.weight, nonlinearity="relu")
        for layer in (self.score, self.box):
            nn.init.normal_(layer.weight, std=0.01)
        for layer in (self.reduce, self.score, self.box):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        batch, prepared = self.prepare(images, targets, training=self.training)
        features = self.encoder(batch.tensor)
        x = F.relu(self.reduce(features[-1]))
        maps, box_maps = self.score(x).float(), self.box(x).float()
        if self.training:
            return self.losses(features[-2], maps, box_maps, batch, prepared)
        return self.detections(features[-2], maps, box_maps, batch)

    def read(self, maps: Tensor, box_maps: Tensor, rois: Tensor) -> RoIScores:
        """Classes, masks and boxes of RoIs [R, 5] from the maps; nothing is learned here."""
        size, scale = self.roi_size, 1 / STRIDE
        pooled = pool(maps, rois, grid=self.grid, size=size, scale=scale)
        inside, outside = pooled.view(-1, self.num_classes, 2, size, size).unbind(2)
        # A box needs no finer bins than the grid: their mean is the vote of its cells.
        codes = pool(box_maps, rois, grid=self.grid, size=self.grid, scale=scale).mean((2, 3))
        logits = torch.maximum(inside, outside).mean((2, 3))
        return RoIScores(logits, inside - outside, codes[:, 4:])

    def losses(
        self,
        shallow: Tensor,
        maps: Tensor,
        box_maps: Tensor,
        batch: ImageBatch,
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """Of the RPN, and class, mask and box of the hardest RoIs."""
        boxes = [target["boxes"] for target in targets]
        found = self.rpn([shallow], batch.sizes, batch.padded, boxes)
        drawn = draw_rois(found.boxes, targets, self.sampling)
        scores = self.read(maps, box_maps, drawn.rois)
        parts = roi_losses(scores, drawn, targets)
        total = torch.stack([part.detach() for part in parts.values()]).sum(0)
        count = min(self.hard_examples * len(targets), len(total))
        hard = total.topk(count).indices
        # Zeros of the maps join them to the graph where no RoI was drawn.
        rest = 0 * (maps.sum() + box_maps.sum())
        return {
            **found.losses,
            **{name: part[hard].sum() / max(count, 1) + rest for name, part in parts.items()},
        }

    def detections(
        self, shallow: Tensor, maps: Tensor, box_maps: Tensor, batch: ImageBatch
    ) -> list[dict[str, Tensor]]:
        """Proposals and their refined boxes as candidates; NMS and voting."""
        found = self.rpn([shallow], batch.sizes, batch.padded)
        first = to_rois(found.boxes)
        scores = self.read(maps, box_maps, first)
        refined = decode(scores.codes, first[:, 1:], BOX_WEIGHTS)
        # Within the image, or its mask would be stretched over another box than it was read from.
        second = clip_rois(torch.cat([first[:, :1], refined], 1), batch.sizes)
        again = self.read(maps, box_maps, second)
        rois = torch.cat([first, second])
        probabilities = torch.cat([scores.logits, again.logits]).softmax(1)
        inside = torch.cat([scores.inside, again.inside])
        # Each candidate's mask is that of its most probable class.
        best = probabilities[:, 1:].argmax(1) + 1
        masks = inside[torch.arange(len(best), device=best.device), best].sigmoid()
        results = []
        for image, (size, original) in enumerate(zip(batch.sizes, batch.originals, strict=True)):
            own = (rois[:, 0] == image).nonzero()[:, 0]
            boxes = resize_boxes(rois[own, 1:], size, original)
            results.append(
                vote_detections(probabilities[own], boxes, masks[own], original, self.voting)
            )
        return results


def roi_losses(scores: RoIScores, drawn: DrawnRoIs, targets: Sequence[Target]) -> dict[str, Tensor]:
    """Losses of each RoI [R]: class of all; box, and mask of the object's class, of positives."""
    positive = drawn.labels.nonzero()[:, 0]
    labels, rois = drawn.labels[positive], drawn.rois[positive]
    inside = scores.inside[positive, labels]
    truth = torch.zeros_like(inside)
    for image, target in enumerate(targets):
        own = (rois[:, 0] == image).nonzero()[:, 0]
        objects = drawn.objects[positive[own]]
        if len(own):
            truth[own] = crop_masks(target["masks"], objects, rois[own, 1:], inside.shape[-1])
    mask = F.binary_cross_entropy_with_logits(inside, truth, reduction="none")
    code = encode(drawn.boxes[positive], rois[:, 1:], BOX_WEIGHTS)
    box = F.smooth_l1_loss(scores.codes[positive], code, reduction="none")
    none = torch.zeros_like(scores.logits[:, 0])
    return {
        "loss_classifier": F.cross_entropy(scores.logits, drawn.labels, reduction="none"),
        "loss_mask": none.index_add(0, positive, SEG_WEIGHT * mask.mean((1, 2))),
        "loss_box_reg": none.index_add(0, positive, box.sum(1)),
    }


def fcis(
    *,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    backbone: str = "resnet101",
    grid: int = 7,
    roi_size: int = 21,
    hidden: int = 1024,
    anchor_sizes: Sequence[Sequence[float]] = ANCHOR_SIZES,
    proposals: int = 300,
    rois_per_image: int = 300,
    hard_examples: int = 128,
    box_score_thresh: float = 0.05,
    box_nms_thresh: float = 0.3,
    box_detections_per_img: int = 100,
    enlarge: float = 1.0,
    min_size: int | Sequence[int] | None = None,
    max_size: int | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> FCIS:
    """FCIS; the defaults are the paper's ResNet-101.

    Args:
        num_classes: background and the classes of things.
        in_channels: channels of the images.
        pretrained: ImageNet weights in the backbone.
        backbone: a resnet; its last stride becomes dilation.
        grid: k, of the 2 k^2 num_classes maps.
        roi_size: side of a RoI's mask, in bins.
        hidden: channels that the maps are computed from.
        anchor_sizes: one tuple of side lengths in pixels.
        proposals: of an image after NMS.
        rois_per_image: of which the losses are computed in training.
        hard_examples: of them those with the largest losses are learned from, per image.
        box_score_thresh, box_nms_thresh, box_detections_per_img: as `VotingOptions`.
        enlarge, min_size, max_size, image_mean, image_std: as `Preparation`.

    Raises:
        OptionError: a value that an option does not have.
    """
    if num_classes < 2:
        raise OptionError(f"num_classes is {num_classes}: background counts, so give at least 2")
    if not 1 <= grid <= roi_size:
        raise OptionError(f"grid is {grid} and roi_size {roi_size}: give 1 <= grid <= roi_size")
    encoder = create_encoder(
        backbone, in_channels=in_channels, output_stride=STRIDE, pretrained=pretrained
    )
    limits = RPNOptions(rpn_post_nms_top_n_train=proposals, rpn_post_nms_top_n_test=proposals)
    rpn = RPN(encoder.out_channels[-2], Anchors(anchor_sizes), limits, hidden=RPN_HIDDEN)
    return FCIS(
        encoder,
        num_classes,
        rpn=rpn,
        prepare=Preparation(in_channels, min_size, max_size, image_mean, image_std, enlarge),
        voting=VotingOptions(
            box_score_thresh=box_score_thresh,
            box_nms_thresh=box_nms_thresh,
            box_detections_per_img=box_detections_per_img,
        ),
        grid=grid,
        roi_size=roi_size,
        hidden=hidden,
        rois_per_image=rois_per_image,
        hard_examples=hard_examples,
    )
