"""Detections of an image matched to its objects by COCO's rules, kept as a record.

Reference: Lin et al. 2014, arXiv:1405.0312, and the rules of its evaluator, COCOeval.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from segcore.errors import DataError, OptionError, ShapeError
from segcore.metrics.masks import PackedMasks, box_area, box_iou, mask_iou, pack_masks
from segcore.metrics.records import Record

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
IouType = Literal["segm", "bbox"]

THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)  # of the IoU
AREAS = {  # of an object, in pixels, both ends included
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
_RANGES = np.array(list(AREAS.values()))
_REACHED = np.minimum(THRESHOLDS, 1 - 1e-10)  # COCOeval's: an IoU of 1 passes whatever its rounding


@dataclass(frozen=True)
class InstanceRecord(Record):
    """All that average precision needs of an image.

    Detections lie class by class, the highest score first, so many a class as were kept. A
    detection that is neither a hit nor ignored is a false alarm.

    Shape:
        labels: [D] int64
        scores: [D] float64
        hits: [A, T, D] bool, matched to an object that counts; A is `AREAS`, T `THRESHOLDS`
        ignored: [A, T, D] bool, matched to a crowd or an object out of the area range, or itself
            out of it and matched to nothing
        truth_labels: [L] int64, ascending: the classes that have objects here
        truths: [L, A] int64, their objects that count
    """

    labels: Integers
    scores: Floats
    hits: Bools
    ignored: Bools
    truth_labels: Integers
    truths: Integers


@dataclass(frozen=True)
class _Objects:
    """Predicted or true objects of an image; scores of true ones and crowds of predicted are 0."""

    labels: Integers
    scores: Floats
    crowd: Bools
    areas: Floats
    masks: PackedMasks | None
    boxes: Floats

    def overlaps(self, mine: Integers, others: "_Objects", theirs: Integers) -> Floats:
        """IoU [len(mine), len(theirs)] of masks where there are any, else of boxes."""
        crowd = others.crowd[theirs]
        if self.masks is None or others.masks is None:
            return box_iou(self.boxes[mine], others.boxes[theirs], crowd)
        return mask_iou(self.masks.take(mine), others.masks.take(theirs), crowd)


def match_image(
    pred: Mapping[str, Any],
    target: Mapping[str, Any],
    *,
    iou_type: IouType = "segm",
    max_detections: int = 100,
    class_agnostic: bool = False,
) -> InstanceRecord:
    """Match the detections of an image to its objects.

    By falling score, each detection takes the object of its class that it overlaps most, if the
    IoU reaches the threshold and no better one has taken it. Crowds, and objects out of the area
    range, are taken only where nothing else is left; a crowd by any number of detections.

    Args:
        pred: `labels` int [m], `scores` [m], and `masks` or `boxes` by `iou_type`.
        target: `labels` int [n], `masks` or `boxes`; `iscrowd` [n] (default none) and `area` [n]
            (default what is measured) if present.
        iou_type: "segm" compares `masks` (as `pack_masks` takes them), "bbox" `boxes` [., 4] xyxy.
        max_detections: kept of each class, the highest scores.
        class_agnostic: take all labels for one, 0.

    Raises:
        ShapeError: lengths or sizes do not belong together.
        DataError: a score is not finite.
        OptionError: iou_type is unknown, or a key is missing.
    """
    if iou_type not in ("segm", "bbox"):
        raise OptionError(f"iou_type is {iou_type!r}: give 'segm' or 'bbox'")
    found = _predicted(pred, iou_type, max_detections, class_agnostic)
    labels = as_array(target, "labels", np.int64)
    labels = np.zeros_like(labels) if class_agnostic else labels
    return _record(found, _objects(target, iou_type, labels, None, np.arange(len(labels))))


def _predicted(
    pred: Mapping[str, Any], iou_type: IouType, max_detections: int, class_agnostic: bool
) -> _Objects:
    """The detections that are kept, class by class and by falling score."""
    labels, scores = as_array(pred, "labels", np.int64), as_array(pred, "scores", np.float64)
    if labels.shape != scores.shape:
        raise ShapeError(f"{len(labels)} labels for {len(scores)} scores: give one each")
    if not np.isfinite(scores).all():
        raise DataError(
            f"the score of a detection is {scores[~np.isfinite(scores)][0]}: "
            "look for a loss that diverged"
        )
    labels = np.zeros_like(labels) if class_agnostic else labels
    return _objects(pred, iou_type, labels, scores, _best(labels, scores, max_detections))


def entry(objects: Mapping[str, Any], key: str) -> Any:
    """A value of the dict of an image.

    Raises:
        OptionError: there is none of this key.
    """
    if key not in objects:
        raise OptionError(f"the dict of an image has no {key!r}, only {sorted(objects)}: add it")
    return objects[key]


def as_array(objects: Mapping[str, Any], key: str, dtype: Any) -> NDArray[Any]:
    """A tensor or list of the dict of an image, as an array on the CPU."""
    value = entry(objects, key)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    return np.asarray(value, dtype=dtype)


def _best(labels: Integers, scores: Floats, limit: int) -> Integers:
    """Indices of the highest `limit` scores of each class, class by class; of equal the earlier."""
    order = np.lexsort((-scores, labels))
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    return order[np.arange(len(order)) - np.repeat(first, counts) < limit]


def _objects(
    objects: Mapping[str, Any],
    iou_type: IouType,
    labels: Integers,
    scores: Floats | None,
    kept: Integers,
) -> _Objects:
    """Read the objects `kept`, in that order."""
    key = "masks" if iou_type == "segm" else "boxes"
    count = len(entry(objects, key))
    if count != len(labels):
        raise ShapeError(f"{count} {key} for {len(labels)} labels: give one each")
    masks, boxes = None, np.zeros((len(kept), 4))
    if iou_type == "segm":
        masks = pack_masks(objects["masks"], kept)
    else:
        boxes = as_array(objects, "boxes", np.float64).reshape(-1, 4)[kept]
    areas = masks.areas.astype(np.float64) if masks is not None else box_area(boxes)
    crowd = np.zeros(len(kept), dtype=bool)
    if scores is None:  # of true objects only
        areas = as_array(objects, "area", np.float64) if "area" in objects else areas
        crowd = as_array(objects, "iscrowd", bool) if "iscrowd" in objects else crowd
        if len(areas) != len(labels) or len(crowd) != len(labels):
            raise ShapeError(
                f"{len(areas)} area and {len(crowd)} iscrowd for {len(labels)} labels: "
                "give one each"
            )
    values = np.zeros(len(kept)) if scores is None else scores[kept]
    return _Objects(labels[kept], values, crowd, areas, masks, boxes)


def _record(found: _Objects, truth: _Objects) -> InstanceRecord:
    """Match class by class."""
    outside = _outside(truth.areas) | truth.crowd  # [A, n]
    hits = np.zeros((len(AREAS), len(THRESHOLDS), len(found.labels)), dtype=bool)
    ignored = np.zeros_like(hits)
    truth_labels = np.unique(truth.labels)
    truths = np.zeros((len(truth_labels), len(AREAS)), dtype=np.int64)
    for row, label in enumerate(truth_labels):
        theirs = np.flatnonzero(truth.labels == label)
        truths[row] = (~outside[:, theirs]).sum(1)
        mine = np.flatnonzero(found.labels == label)
        iou = found.overlaps(mine, truth, theirs)
        hits[..., mine], ignored[..., mine] = greedy(iou, outside[:, theirs], truth.crowd[theirs])
    ignored |= ~hits & ~ignored & _outside(found.areas)[:, None]
    return InstanceRecord(found.labels, found.scores, hits, ignored, truth_labels, truths)


def _outside(areas: Floats) -> Bools:
    """Which areas [n] are out of which range: [A, n]."""
    return np.asarray((areas < _RANGES[:, :1]) | (areas > _RANGES[:, 1:]))


def greedy(iou: Floats, outside: Bools, crowd: Bools) -> tuple[Bools, Bools]:
    """Assign detections to objects at every area range and IoU threshold at once.

    Shape:
        iou: [D, n], detections by falling score
        outside: [A, n], objects that are ignored in each range, crowds among them
        crowd: [n]
        returns: hits and ignored, each [A, T, D]: matched to an object that counts, to one ignored
    """
    hits = np.zeros((len(outside), len(THRESHOLDS), len(iou)), dtype=bool)
    ignored = np.zeros_like(hits)
    taken = np.zeros((*hits.shape[:2], len(crowd)), dtype=bool)
    close = iou >= _REACHED[0]
    for d in np.flatnonzero(close.any(1)):
        near = np.flatnonzero(close[d])[::-1]  # of equal IoU the later object is taken
        value = iou[d, near]
        fits = (~taken[:, :, near] | crowd[near]) & (value >= _REACHED[:, None])
        counted = fits & ~outside[:, None, near]
        fits = np.where(counted.any(-1, keepdims=True), counted, fits)
        best = np.where(fits, value, -1.0).argmax(-1)
        ranges, thresholds = np.nonzero(fits.any(-1))
        chosen = near[best[ranges, thresholds]]
        taken[ranges, thresholds, chosen] = True
        ignored[ranges, thresholds, d] = outside[ranges, chosen]
        hits[ranges, thresholds, d] = ~outside[ranges, chosen]
    return hits, ignored
