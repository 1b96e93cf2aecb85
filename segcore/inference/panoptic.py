"""Things and stuff of one image as one map of segments.

Reference: Kirillov et al. 2019, arXiv:1801.00868, section 4.2 and panopticapi's
combine_semantic_and_instance_predictions.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segcore.errors import OptionError, ShapeError

Window = tuple[NDArray[np.bool_], tuple[int, int]]

SCORE_THRESHOLD = 0.5
OVERLAP_THRESHOLD = 0.5
STUFF_AREA_PX = 64 * 64
MASK_THRESHOLD = 0.5


def stuff_map(logits: Tensor, things: Sequence[bool]) -> Tensor:
    """Class of every pixel from a panoptic model's semantic logits.

    Args:
        logits: [S + 1, H, W]: the stuff classes in the order of `things`, then any thing.
        things: of each of the dataset's classes, whether it is a thing.

    Returns:
        int64 [H, W], indices into `things`; -1 where a thing is.

    Raises:
        ShapeError: there are not S stuff classes in `things`.
    """
    stuff = [index for index, thing in enumerate(things) if not thing]
    if len(logits) != len(stuff) + 1:
        raise ShapeError(
            f"semantic logits have {len(logits)} channels, {len(stuff)} stuff classes need "
            f"{len(stuff) + 1}: build the model with num_stuff={len(stuff)}"
        )
    return torch.tensor([*stuff, -1], device=logits.device)[logits.argmax(dim=0)]


def merge(
    semantic: Tensor | NDArray[Any],
    instances: Mapping[str, Tensor],
    *,
    things: Sequence[bool],
    score_threshold: float = SCORE_THRESHOLD,
    overlap_threshold: float = OVERLAP_THRESHOLD,
    stuff_area: int = STUFF_AREA_PX,
    mask_threshold: float = MASK_THRESHOLD,
) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """Paint things by descending score, each on what is free, then stuff on the rest.

    Args:
        semantic: class index of every pixel [H, W], of a semantic model or `stuff_map`; pixels of
            thing classes, or of no class of `things`, stay void.
        instances: "labels" [m] (1 + rank among the things), "scores" [m], and "masks" [m, 1, H, W]
            or [m, H, W], probabilities or booleans.
        things: of each of the dataset's classes, whether it is a thing.
        score_threshold: least score of an instance.
        overlap_threshold: an instance is dropped if more than this share of it is taken.
        stuff_area: least pixels of a stuff class.
        mask_threshold: a pixel belongs to an instance above this probability.

    Returns:
        id of the segment at every pixel, int32 [H, W], 0 for void; and the segments, in the order
        of their ids: {"id", "category" (class index), "isthing", "score" (None for stuff),
        "area" (px)}.

    Raises:
        ShapeError: masks and semantic differ in size.
        OptionError: a label has no thing in `things`.
    """
    semantic = torch.as_tensor(semantic).cpu()
    masks, labels, scores = _strongest(instances, score_threshold, mask_threshold)
    if masks.shape[1:] != semantic.shape:
        raise ShapeError(
            f"masks are {tuple(masks.shape[1:])}, semantic is {tuple(semantic.shape)}: give both "
            "at the image's size"
        )
    classes = [index for index, thing in enumerate(things) if thing]
    if len(labels) and not 1 <= int(labels.min()) <= int(labels.max()) <= len(classes):
        raise OptionError(
            f"labels are {sorted(set(labels.tolist()))}, things has {len(classes)} things: "
            "labels run from 1"
        )
    return merge_windows(
        semantic.numpy(),
        [(mask, (0, 0)) for mask in masks.numpy()],
        [classes[label - 1] for label in labels.tolist()],
        scores.tolist(),
        things=things,
        overlap_threshold=overlap_threshold,
        stuff_area=stuff_area,
    )


def merge_windows(
    semantic: NDArray[Any],
    windows: Sequence[Window],
    classes: Sequence[int],
    scores: Sequence[float],
    *,
    things: Sequence[bool],
    overlap_threshold: float = OVERLAP_THRESHOLD,
    stuff_area: int = STUFF_AREA_PX,
) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """As `merge`, of masks that are cut out: no more memory than the map takes.

    Args:
        semantic: class index of every pixel, integer [H, W].
        windows: of each instance, by falling score: bool [h, w] and its (top, left) corner.
        classes: class index of each.
        scores: of each.
        things, overlap_threshold, stuff_area: as `merge`.
    """
    ids = np.zeros(semantic.shape, dtype=np.int32)
    segments: list[dict[str, Any]] = []

    def add(part: NDArray[np.int32], free: NDArray[np.bool_], **facts: Any) -> None:
        part[free] = len(segments) + 1
        area = int(free.sum())
        segments.append({"id": len(segments) + 1, **facts, "area": area})

    for (mask, (top, left)), category, score in zip(windows, classes, scores, strict=True):
        part = ids[top : top + mask.shape[0], left : left + mask.shape[1]]
        free = mask & (part == 0)
        area = int(mask.sum())
        if free.any() and area - int(free.sum()) <= overlap_threshold * area:
            add(part, free, category=category, isthing=True, score=score)
    for category in [index for index, thing in enumerate(things) if not thing]:
        free = (semantic == category) & (ids == 0)
        if free.any() and int(free.sum()) >= stuff_area:
            add(ids, free, category=category, isthing=False, score=None)
    return ids, segments


def _strongest(
    instances: Mapping[str, Tensor], score_threshold: float, mask_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Boolean masks [m, H, W], labels and scores from the threshold on, descending by score."""
    scores = instances["scores"].float().cpu()
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= score_threshold]
    masks = instances["masks"][order.to(instances["masks"].device)]
    masks = masks[:, 0] if masks.dim() == 4 else masks
    masks = masks if masks.dtype == torch.bool else masks > mask_threshold
    return masks.cpu(), instances["labels"].cpu()[order], scores[order]
