"""The second stage: proposals against objects in training, proposals into detections in eval.

References: Girshick 2015, arXiv:1504.08083; He et al. 2017, arXiv:1703.06870.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segcore.models.detection.boxes import (
    box_iou,
    clip_boxes,
    decode,
    encode,
    has_sides,
    pad_boxes,
    to_rois,
)
from segcore.models.detection.heads import C4Heads, FPNHeads
from segcore.models.detection.images import Target
from segcore.models.detection.masks import crop_masks
from segcore.models.detection.matching import IGNORED, match, sample

MIN_SIDE_PX = 1e-2
SMOOTH_L1_BETA = 1 / 9


@dataclass(frozen=True)
class RoIOptions:
    """How proposals are trained and detections kept; torchvision's names and defaults.

    Args:
        box_score_thresh: least probability of a detection.
        box_nms_thresh: overlap from which NMS, done per class, drops the weaker box.
        box_detections_per_img: most detections of an image.
        box_fg_iou_thresh: a proposal is an object's from this overlap on.
        box_bg_iou_thresh: and background below this one.
        box_batch_size_per_image: proposals an image in the loss.
        box_positive_fraction: largest share of objects' proposals among them.
        bbox_reg_weights: factors of the box code.
        mask_batch_size_per_image: objects' proposals an image in the mask loss (the costliest part
            on a CPU); None for all that were drawn.
    """

    box_score_thresh: float = 0.05
    box_nms_thresh: float = 0.5
    box_detections_per_img: int = 100
    box_fg_iou_thresh: float = 0.5
    box_bg_iou_thresh: float = 0.5
    box_batch_size_per_image: int = 512
    box_positive_fraction: float = 0.25
    bbox_reg_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0)
    mask_batch_size_per_image: int | None = None


@dataclass(frozen=True, eq=False)
class DrawnRoIs:
    """Proposals of a whole batch with what they should become, images in order.

    Args:
        rois: [R, 5], index of the image and box.
        labels: int64 [R], 0 for background.
        objects: int64 [R], index of the object in its image (0 for background).
        boxes: [R, 4] of that object.
    """

    rois: Tensor
    labels: Tensor
    objects: Tensor
    boxes: Tensor


def draw_rois(
    proposals: Sequence[Tensor], targets: Sequence[Target], options: RoIOptions
) -> DrawnRoIs:
    """Sample proposals (and the objects' own boxes) for the loss; whole batch at once."""
    candidates, here = pad_boxes(
        [torch.cat([p, t["boxes"]]) for p, t in zip(proposals, targets, strict=True)]
    )
    boxes, present = pad_boxes([t["boxes"] for t in targets])
    labels = torch.zeros(boxes.shape[:2], dtype=torch.int64, device=boxes.device)
    for row, target in zip(labels, targets, strict=True):
        row[: len(target["labels"])] = target["labels"]
    high, low = options.box_fg_iou_thresh, options.box_bg_iou_thresh
    index, kind = match(box_iou(boxes, candidates.detach()), present, high=high, low=low)
    kind[~here] = IGNORED
    positive, negative = sample(
        kind, options.box_batch_size_per_image, options.box_positive_fraction
    )
    image, place = (positive | negative).nonzero(as_tuple=True)
    found = index[image, place]
    return DrawnRoIs(
        rois=torch.cat([image[:, None].float(), candidates[image, place]], dim=1),
        labels=labels[image, found] * positive[image, place],
        objects=found,
        boxes=boxes[image, found],
    )


def box_losses(
    logits: Tensor, codes: Tensor, drawn: DrawnRoIs, weights: Sequence[float]
) -> dict[str, Tensor]:
    """Cross-entropy of every RoI, smooth L1 of the positives' own class over all RoIs.

    Args:
        logits: [R, K]
        codes: [R, K, 4]
        drawn: of R RoIs.
        weights: factors of the box code.
    """
    count = max(1, len(drawn.rois))
    classifier = F.cross_entropy(logits, drawn.labels, reduction="sum") / count
    positive = drawn.labels.nonzero()[:, 0]
    target = encode(drawn.boxes[positive], drawn.rois[positive, 1:], weights)
    own = codes[positive, drawn.labels[positive]]
    distance = F.smooth_l1_loss(own, target, beta=SMOOTH_L1_BETA, reduction="sum")
    return {"loss_classifier": classifier, "loss_box_reg": distance / count}


def mask_loss(
    logits: Tensor,
    drawn: DrawnRoIs,
    chosen: Tensor,
    targets: Sequence[Target],
    *,
    aligned: bool = True,
) -> Tensor:
    """Per-pixel binary cross-entropy of the mask of the object's own class.

    Args:
        logits: [P, K, M, M] of the chosen RoIs.
        drawn: all RoIs.
        chosen: int64 [P] into them, positives.
        targets: with "masks" [n, H, W] at the batch's scale.
        aligned: as `crop_masks`.
    """
    if len(chosen) == 0:
        return logits.sum() * 0.0
    rois, objects = drawn.rois[chosen], drawn.objects[chosen]
    own = logits[torch.arange(len(chosen), device=logits.device), drawn.labels[chosen]]
    truth = torch.empty_like(own)
    for image, target in enumerate(targets):
        rows = (rois[:, 0] == image).nonzero()[:, 0]
        if len(rows):
            masks, boxes = target["masks"], rois[rows, 1:]
            truth[rows] = crop_masks(masks, objects[rows], boxes, own.shape[-1], aligned=aligned)
    return F.binary_cross_entropy_with_logits(own, truth)


def choose_for_masks(drawn: DrawnRoIs, most: int | None) -> Tensor:
    """Index of the positives, at most `most` an image, drawn at random."""
    positive = drawn.labels.nonzero()[:, 0]
    if most is None or len(positive) == 0:
        return positive
    shuffled = positive[torch.randperm(len(positive), device=positive.device)]
    image = drawn.rois[shuffled, 0].long()
    order = image.argsort(stable=True)
    counts = torch.bincount(image)
    rank = torch.arange(len(image), device=image.device) - (counts.cumsum(0) - counts)[image[order]]
    return shuffled[order][rank < most].sort().values


def keep_detections(
    probabilities: Tensor, boxes: Tensor, size: tuple[int, int], options: RoIOptions
) -> dict[str, Tensor]:
    """Detections of one image: threshold, NMS per class, the best of all.

    Args:
        probabilities: [R, K]
        boxes: [R, K, 4]
        size: (height, width) to clip to.
        options: thresholds.

    Returns:
        "boxes" [m, 4], "labels" [m], "scores" [m] descending.
    """
    from torchvision.ops import batched_nms

    row, label = (probabilities[:, 1:] > options.box_score_thresh).nonzero(as_tuple=True)
    label = label + 1
    scores, found = probabilities[row, label], clip_boxes(boxes[row, label], size)
    good = has_sides(found, MIN_SIDE_PX)
    scores, found, label = scores[good], found[good], label[good]
    kept = batched_nms(found, scores, label, options.box_nms_thresh)
    kept = kept[: options.box_detections_per_img]
    return {"boxes": found[kept], "labels": label[kept], "scores": scores[kept]}


def detect(
    heads: FPNHeads | C4Heads,
    features: Sequence[Tensor],
    proposals: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    options: RoIOptions,
) -> list[dict[str, Tensor]]:
    """Detections of every image, with "masks" as probabilities [m, M, M] over their boxes.

    Masks are computed for the boxes that remain, as the paper does.
    """
    rois = to_rois(proposals)
    outputs = heads.box(features, rois)
    boxes = decode(outputs.codes, rois[:, None, 1:], options.bbox_reg_weights)
    counts = [len(p) for p in proposals]
    parts = zip(
        outputs.logits.softmax(dim=1).split_with_sizes(counts),
        boxes.split_with_sizes(counts),
        sizes,
        strict=True,
    )
    results = [keep_detections(*part, options) for part in parts]
    logits = heads.mask(features, to_rois([r["boxes"] for r in results]), None)
    label = torch.cat([r["labels"] for r in results])
    masks = logits[torch.arange(len(label), device=label.device), label].sigmoid()
    for result, own in zip(
        results, masks.split_with_sizes([len(r["labels"]) for r in results]), strict=True
    ):
        result["masks"] = own
    return results
