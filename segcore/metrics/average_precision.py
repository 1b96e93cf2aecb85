"""Average precision and recall of matched images, under any weights of the images.

Detections are sorted once; how they match is fixed in the records. So a weighting of the images, as
a resample of a bootstrap is, costs running sums and no matching.

Reference: Lin et al. 2014, arXiv:1405.0312, and `accumulate` of its evaluator, COCOeval.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segcore.metrics.matching import AREAS, THRESHOLDS, InstanceRecord
from segcore.metrics.records import check_weights, mean_defined, ratio

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RECALLS: Floats = np.linspace(0.0, 1.0, 101)  # where precision is read
_STEPS = len(RECALLS) - 1
_ABOVE = np.append(RECALLS, np.inf)
_CHUNK = 1 << 17  # numbers in a block of weighted detections: 1 MB, whatever the number of weights


@dataclass(frozen=True)
class ClassTable:
    """One class over all images.

    Shape:
        image: [D] int64 record that each detection is of; by falling score, of equal the earlier
        rank: [D] int64 place within its image and class
        hits, ignored: [A, T, D] bool, of `InstanceRecord`
        truths: [B, A] int64 objects that count
    """

    image: Integers
    rank: Integers
    hits: Bools
    ignored: Bools
    truths: Integers


@dataclass(frozen=True)
class PrecisionTable:
    """Figures by class under weights; NaN where a class has no object.

    Shape:
        labels: [K] int64, the classes that have an object in any record
        ap: [R, K, A, T]
        recall: [R, K, A, T], of all detections that the records hold
        capped: [R, K, C, T], recall with no more detections an image and class than each limit
    """

    labels: Integers
    ap: Floats
    recall: Floats
    capped: Floats


def class_tables(records: Sequence[InstanceRecord]) -> Iterator[tuple[int, ClassTable]]:
    """Join the records class by class, for the classes that have objects."""
    if not records:
        return
    counts = [len(record.labels) for record in records]
    image = np.repeat(np.arange(len(records)), counts)
    labels, scores, hits, ignored = (
        np.concatenate([getattr(record, name) for record in records], axis=-1)
        for name in ("labels", "scores", "hits", "ignored")
    )
    owner = np.repeat(np.arange(len(records)), [len(record.truths) for record in records])
    truth_labels = np.concatenate([record.truth_labels for record in records])
    truths = np.concatenate([record.truths for record in records])
    for label in np.unique(truth_labels):
        mine = np.flatnonzero(labels == label)
        first = np.searchsorted(image[mine], image[mine])
        order = np.argsort(-scores[mine], kind="stable")
        mine, rank = mine[order], (np.arange(len(mine)) - first)[order]
        table = np.zeros((len(records), len(AREAS)), dtype=np.int64)
        table[owner[truth_labels == label]] = truths[truth_labels == label]
        yield int(label), ClassTable(image[mine], rank, hits[..., mine], ignored[..., mine], table)


def precision_table(
    records: Sequence[InstanceRecord], weights: Any, *, limits: Sequence[int] = (1, 10, 100)
) -> PrecisionTable:
    """Average precision and recall of each class, area range and threshold.

    Args:
        limits: of detections an image and class, for `capped`.

    Shape:
        weights: [R, B], how often each image counts in each weighting
    """
    weights = check_weights(weights, len(records))
    labels, ap, recall, capped = [], [], [], []
    for label, table in class_tables(records):
        truths = weights @ table.truths  # [R, A]
        labels.append(label)
        ap.append(_average_precision(table, weights, truths))
        recall.append(_recall(table, weights, truths))
        every = [_recall(table, weights, truths, limit)[:, 0] for limit in limits]
        capped.append(np.stack(every, axis=1))
    if not labels:
        empty = np.zeros((len(weights), 0, len(AREAS), len(THRESHOLDS)))
        return PrecisionTable(np.zeros(0, np.int64), empty, empty, empty[:, :, : len(limits)])
    joined = (np.stack(part, axis=1) for part in (ap, recall, capped))
    return PrecisionTable(np.array(labels), *joined)


def weighted_ap(records: Sequence[InstanceRecord], weights: Any) -> dict[str, Floats]:
    """COCO's twelve figures under weights of the images.

    Equal to counting each image as often as its weight says, with its copies next to it. Weights
    need not be whole numbers. NaN where there is no object.

    Shape:
        weights: [R, B] at least 0, B the number of records
        returns: [R] each: ap, ap50, ap75, ap_small, ap_medium, ap_large, ar_1, ar_10, ar_100,
            ar_small, ar_medium, ar_large
    """
    return summary(precision_table(records, weights))


def summary(table: PrecisionTable) -> dict[str, Floats]:
    """The twelve figures [R] of a table made with the limits 1, 10, 100."""
    ap, recall = table.ap, table.recall
    figures = {"ap": ap[:, :, 0], "ap50": ap[:, :, 0, :1], "ap75": ap[:, :, 0, 5:6]}
    figures |= {f"ap_{name}": ap[:, :, i] for i, name in enumerate(AREAS) if i}
    figures |= {f"ar_{cap}": table.capped[:, :, i] for i, cap in enumerate((1, 10, 100))}
    figures |= {f"ar_{name}": recall[:, :, i] for i, name in enumerate(AREAS) if i}
    return {name: mean_defined(part, (1, 2)) for name, part in figures.items()}


def weighted_ar(
    records: Sequence[InstanceRecord], weights: Any, *, limits: Sequence[int] = (10, 100, 1000)
) -> dict[str, Floats]:
    """Average recall of proposals over IoU 0.5:0.95, under weights of the images.

    Args:
        records: matched with `class_agnostic` and max_detections of the largest limit.

    Shape:
        weights: [R, B]
        returns: [R] each: ar_10, ar_100, ar_1000 (by the limits), and of all proposals ar_small,
            ar_medium, ar_large
    """
    weights = check_weights(weights, len(records))
    figures = {f"ar_{limit}": np.full(len(weights), np.nan) for limit in limits}
    figures |= {f"ar_{name}": np.full(len(weights), np.nan) for name in AREAS if name != "all"}
    for _, table in class_tables(records):  # one, of label 0
        truths = weights @ table.truths
        every = _recall(table, weights, truths)
        for limit in limits:
            figures[f"ar_{limit}"] = _recall(table, weights, truths, limit)[:, 0].mean(1)
        for i, name in enumerate(AREAS):
            if name != "all":
                figures[f"ar_{name}"] = every[:, i].mean(1)
    return figures


def precision_curves(records: Sequence[InstanceRecord]) -> dict[int, Floats]:
    """Precision at the 101 recalls `RECALLS` of each class, area range "all": [T, 101] by label.

    Its mean over the recalls is the average precision.
    """
    curves = {}
    for label, table in class_tables(records):
        weights = np.ones((len(table.truths), 1))
        truths = table.truths[:, :1].sum(0).astype(np.float64)
        curve = np.zeros((len(THRESHOLDS), len(RECALLS)))
        if truths[0] > 0:
            block = weights[table.image]
            for t in range(len(THRESHOLDS)):
                best, passed = _envelope(block, table.hits[0, t], table.ignored[0, t], truths)
                steps = np.repeat(best[:, 0], np.diff(passed[:, 0], prepend=0))
                curve[t, : len(steps)] = steps
            curves[label] = curve
    return curves


def _recall(table: ClassTable, weights: Floats, truths: Floats, limit: int | None = None) -> Floats:
    """Recall [R, A, T] of the detections up to a rank; NaN where there is no object."""
    kept = slice(None) if limit is None else np.flatnonzero(table.rank < limit)
    images, place = np.unique(table.image[kept], return_inverse=True)
    hits = table.hits[..., kept].reshape(len(AREAS) * len(THRESHOLDS), -1)
    counts = np.stack([np.bincount(place, row, minlength=len(images)) for row in hits], axis=1)
    found = (weights[:, images] @ counts).reshape(len(weights), len(AREAS), -1)
    return ratio(found, truths[:, :, None])


def _average_precision(table: ClassTable, weights: Floats, truths: Floats) -> Floats:
    """Average precision [R, A, T]; NaN where there is no object."""
    result = np.full((len(weights), len(AREAS), len(THRESHOLDS)), np.nan)
    rows = max(1, _CHUNK // max(1, len(table.image)))
    for start in range(0, len(weights), rows):
        part = slice(start, start + rows)
        block = np.ascontiguousarray(weights[part].T)[table.image]  # [D, r]
        for a in range(len(AREAS)):
            whole = truths[part, a]
            values = _area_precision(block, table.hits[a], table.ignored[a], whole)
            result[part, a] = np.where(whole[:, None] > 0, values, np.nan)
    return result


def _area_precision(block: Floats, hits: Bools, ignored: Bools, truths: Floats) -> Floats:
    """Average precision [r, T] in one area range."""
    values = np.zeros((block.shape[1], len(THRESHOLDS)))
    for t in range(len(THRESHOLDS)):
        best, passed = _envelope(block, hits[t], ignored[t], truths)
        passed[1:] -= passed[:-1].copy()
        values[:, t] = np.einsum("ij,ij->j", best, passed) / len(RECALLS)
    return values


def _envelope(
    block: Floats, hits: Bools, ignored: Bools, truths: Floats
) -> tuple[Floats, Integers]:
    """Highest precision from each hit on, and how many of `RECALLS` are reached with it.

    Only hits matter: at a false alarm precision falls and recall stands.

    Shape:
        block: [D, r] weight of each detection's image, by falling score
        hits, ignored: [D]
        truths: [r] weighted number of objects
        returns: [H, r] and [H, r], for the H hits
    """
    kept = np.flatnonzero(~ignored)
    place = np.flatnonzero(hits[kept])
    total = np.cumsum(block[kept], axis=0)[place]
    right = np.cumsum(block[kept[place]], axis=0)
    precision = np.divide(right, total, out=np.zeros_like(right), where=total > 0)
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = right / np.where(truths > 0, truths, np.inf)
    passed = (recall * _STEPS).astype(np.int64) + 1
    passed += recall >= _ABOVE[passed]
    passed -= recall < _ABOVE[passed - 1]
    return best, passed
