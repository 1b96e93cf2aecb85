"""From one pass of a cascade to the next: what the moved boxes and their masks now stand for.

Reference: Dai, He & Sun 2016 (MNC), arXiv:1512.04412.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from segcore.models.detection.boxes import (
    box_area,
    box_iou,
    clip_gradient,
    clip_rois,
    decode,
    pad_boxes,
)
from segcore.models.detection.images import Target
from segcore.models.detection.masks import crop_masks
from segcore.models.detection.roi import DrawnRoIs

POSITIVE_IOU = 0.5
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# The most that a box code gets through its box, over the number of images; as the release clips it.
# Without, categories push the RPN's boxes away from objects that they do not overlap by half yet,
# until only the objects' own boxes are left to learn from.
BOX_GRADIENT = 1 / 512


def refine(
    codes: Tensor,
    rois: Tensor,
    labels: Tensor,
    sizes: Sequence[tuple[int, int]],
) -> Tensor:
    """RoIs [R, 5] moved by the box codes of labels [R], within their images.

    The gradient reaches codes and RoIs, but for sides that lie on the edge of the image.

    Args:
        codes: [R, K, 4] of every class.
        rois, labels: as said.
        sizes: (height, width) of each image.
    """
    codes = clip_gradient(codes, BOX_GRADIENT / len(sizes))
    own = codes[torch.arange(len(labels), device=labels.device), labels]
    moved = torch.cat([rois[:, :1], decode(own, rois[:, 1:], BOX_WEIGHTS)], 1)
    return clip_rois(moved, sizes)


def match_again(rois: Tensor, targets: Sequence[Target]) -> DrawnRoIs:
    """Give moved RoIs [R, 5] the objects that they overlap most, from an overlap of 0.5 on."""
    boxes, present = pad_boxes([target["boxes"] for target in targets])
    image = rois[:, 0].detach().long()
    overlap = box_iou(boxes[image], rois[:, None, 1:].detach())[..., 0]
    best, objects = overlap.masked_fill(~present[image], -1).max(1)
    return DrawnRoIs(
        rois=rois,
        labels=_labels(image, objects, targets) * (best >= POSITIVE_IOU),
        objects=objects,
        boxes=boxes[image, objects],
    )


def mask_labels(masks: Tensor, drawn: DrawnRoIs, targets: Sequence[Target]) -> Tensor:
    """Labels [R] of masks: those of their RoIs where mask and object overlap by half, else 0.

    The overlap is of pixels in the image: an object outside of the RoI counts as missed.

    Args:
        masks: logits [R, m, m] over the RoIs.
        drawn: the RoIs and the objects that their boxes stand for.
        targets: with "masks" [n, H, W].
    """
    size = masks.shape[-1]
    found = (masks > 0).float()
    cell = box_area(drawn.rois[:, 1:]) / size**2
    share = torch.zeros_like(found)
    area = torch.zeros_like(cell)
    for image, target in enumerate(targets):
        own = ((drawn.rois[:, 0] == image) & (drawn.labels > 0)).nonzero()[:, 0]
        if len(own):
            objects = drawn.objects[own]
            share[own] = crop_masks(target["masks"], objects, drawn.rois[own, 1:], size)
            area[own] = (target["masks"] > 0).flatten(1).sum(1).float()[objects]
    shared = (found * share).sum((1, 2)) * cell
    union = found.sum((1, 2)) * cell + area - shared
    return drawn.labels * (shared >= POSITIVE_IOU * union)


def _labels(image: Tensor, objects: Tensor, targets: Sequence[Target]) -> Tensor:
    """Label [R] of each object by its image and its index there; 0 where the image has none."""
    most = max(1, *(len(target["labels"]) for target in targets))
    table = objects.new_zeros(len(targets), most)
    for row, target in zip(table, targets, strict=True):
        row[: len(target["labels"])] = target["labels"]
    return table[image, objects]
