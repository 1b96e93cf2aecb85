"""Detections of FCIS and MNC: NMS on boxes, and masks that the overlapping candidates vote for.

References: Dai et al. 2016 (MNC), arXiv:1512.04412, section 3; Li et al. 2017 (FCIS),
arXiv:1611.07709, section 3.4.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from segcore.models.detection.boxes import box_iou, clip_boxes
from segcore.models.detection.position_sensitive import mask_boxes, vote
from segcore.models.detection.roi import RoIOptions, keep_detections


@dataclass(frozen=True)
class VotingOptions:
    """How candidates become detections; the papers' values.

    Args:
        box_score_thresh: least probability of a detection.
        box_nms_thresh: overlap from which NMS, done per class, drops the weaker box.
        box_detections_per_img: most detections of an image.
        vote_thresh: overlap with a detection from which a candidate votes on its mask.
        mask_threshold: share of the votes from which a pixel is the object's; masks come shifted
            so that it lies at 0.5.
    """

    box_score_thresh: float = 0.05
    box_nms_thresh: float = 0.3
    box_detections_per_img: int = 100
    vote_thresh: float = 0.5
    mask_threshold: float = 0.4


def vote_detections(
    probabilities: Tensor,
    boxes: Tensor,
    masks: Tensor,
    size: tuple[int, int],
    options: VotingOptions,
) -> dict[str, Tensor]:
    """Detections of one image out of its candidates.

    Each detection's mask is the mean of the masks of the candidates that overlap it, weighted by
    their probabilities of its class; its box surrounds the mask.

    Args:
        probabilities: of each class, background first.
        boxes: of the candidates, in pixels of the image.
        masks: of the candidates, 0..1 over their boxes.
        size: (H, W) of the image.
        options: thresholds.

    Shape:
        probabilities: [R, K]
        boxes: [R, 4]
        masks: [R, m, m]
        returns: "boxes" [n, 4], "labels" [n], "scores" [n] descending, "masks" [n, 1, H, W]
    """
    limits = RoIOptions(
        box_score_thresh=options.box_score_thresh,
        box_nms_thresh=options.box_nms_thresh,
        box_detections_per_img=options.box_detections_per_img,
    )
    probabilities, masks = probabilities.float(), masks.float()
    boxes = clip_boxes(boxes.float(), size)
    per_class = boxes[:, None].expand(-1, probabilities.shape[1], 4)
    kept = keep_detections(probabilities, per_class, size, limits)
    says = box_iou(kept["boxes"], boxes) >= options.vote_thresh
    voted = vote(masks, boxes, probabilities[:, kept["labels"]].T * says, size)
    level = math.log(options.mask_threshold / (1 - options.mask_threshold))
    voted = (voted.clamp(0, 1).logit(eps=1e-6) - level).sigmoid()
    found = voted > 0.5
    surround = torch.where(found.flatten(1).any(1)[:, None], mask_boxes(found), kept["boxes"])
    return {**kept, "boxes": surround, "masks": voted[:, None]}
