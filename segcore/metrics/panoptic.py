"""Panoptic quality by the rules of panopticapi, from a record of each image.

A panoptic picture is a dict: `ids`, an integer map [H, W] that gives each pixel its segment, 0
where it has none (void), and `segments`, {id: (category, iscrowd)} of every id in the map. A
category is the index of a class.

Reference: Kirillov et al. 2019, arXiv:1801.00868, and `pq_compute` of panopticapi.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segcore.errors import DataError, OptionError, ShapeError
from segcore.metrics.matching import as_array, entry
from segcore.metrics.records import Record, RecordMetric, check_weights, mean_defined, ratio

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_MATCHES = 0.5  # an IoU above it makes a match, which no other segment can have
_COUNTS = ("iou", "tp", "fp", "fn")
_PIXELS = ("both", "either")


@dataclass(frozen=True)
class PanopticRecord(Record):
    """All that panoptic quality needs of an image.

    Shape:
        categories: [L] int64, ascending: those with a segment that counts
        iou: [L] float64, sum over the matched segments
        tp, fp, fn: [L] int64, segments matched, predicted alone, true alone
        classes: [K] int64, ascending: those with a pixel where the truth is not void
        both, either: [K] int64, their pixels there in both pictures, and in at least one
    """

    categories: Integers
    iou: Floats
    tp: Integers
    fp: Integers
    fn: Integers
    classes: Integers
    both: Integers
    either: Integers


@dataclass(frozen=True)
class _Segments:
    """Segments of one picture, by rising id; `place` [H, W] is 0 of void, else 1 + the segment."""

    place: Integers
    categories: Integers
    crowd: Bools


def match_panoptic(pred: Mapping[str, Any], target: Mapping[str, Any]) -> PanopticRecord:
    """Match the segments of an image.

    A predicted and a true segment of one category match at an IoU above 0.5, where predicted pixels
    on void do not count. Crowds are never matched or missed. A prediction that is left over is a
    false alarm unless more than half of it lies on void or on crowds of its category (panopticapi
    looks at one crowd of a category; here all count).

    Args:
        pred, target: panoptic pictures of one size; iscrowd of a prediction does not matter.

    Raises:
        ShapeError: the maps are not of one size [H, W].
        DataError: ids of the map and of `segments` are not the same.
    """
    found, truth = _read(pred, "prediction"), _read(target, "target")
    if found.place.shape != truth.place.shape:
        raise ShapeError(
            f"predicted ids are {found.place.shape}, true ids {truth.place.shape}: "
            "resize the prediction to the image"
        )
    n, m = len(truth.categories), len(found.categories)
    code = truth.place * (m + 1) + found.place
    shared = np.bincount(code.ravel(), minlength=(n + 1) * (m + 1)).reshape(n + 1, m + 1)
    void, areas = shared[0, 1:], shared[:, 1:].sum(0)
    inner = shared[1:, 1:]
    same = truth.categories[:, None] == found.categories
    union = areas - void + shared[1:].sum(1)[:, None] - inner
    iou = np.where(same & ~truth.crowd[:, None], inner / np.maximum(union, 1), 0.0)
    matched = iou > _MATCHES
    on_crowd = (inner * (same & truth.crowd[:, None])).sum(0)
    false = ~matched.any(0) & ((void + on_crowd) / np.maximum(areas, 1) <= 0.5)
    missed = ~matched.any(1) & ~truth.crowd
    rows = np.nonzero(matched)[0]
    counts = _counted(
        truth.categories[rows], iou[matched], found.categories[false], truth.categories[missed]
    )
    return PanopticRecord(**counts, **_pixels(truth.categories, found.categories, shared[1:]))


def _counted(tp: Integers, iou: Floats, fp: Integers, fn: Integers) -> dict[str, NDArray[Any]]:
    """Of the record, from the category of each match (and its IoU), false alarm and miss."""
    categories, place = np.unique(np.concatenate([tp, fp, fn]), return_inverse=True)
    right, false, missed = np.split(place, [len(tp), len(tp) + len(fp)])
    size = len(categories)
    return {
        "categories": categories,
        "iou": np.bincount(right, iou, minlength=size).astype(np.float64),
        "tp": np.bincount(right, minlength=size),
        "fp": np.bincount(false, minlength=size),
        "fn": np.bincount(missed, minlength=size),
    }


def _pixels(truth: Integers, found: Integers, shared: Integers) -> dict[str, NDArray[Any]]:
    """Of the record, from the categories of the segments and the pixels that they share.

    Shape:
        truth: [n]
        found: [m]
        shared: [n, 1 + m], the predicted void first
    """
    classes = np.unique(np.concatenate([truth, found]))
    is_true = truth == classes[:, None]
    is_found = np.insert(found == classes[:, None], 0, False, axis=1)
    of_class = is_true @ shared
    both = (of_class * is_found).sum(1)
    either = of_class.sum(1) + is_found @ shared.sum(0) - both
    there = either > 0
    return {"classes": classes[there], "both": both[there], "either": either[there]}


def _read(picture: Mapping[str, Any], name: str) -> _Segments:
    """Check a picture and number its segments."""
    ids = as_array(picture, "ids", np.int64)
    if ids.ndim != 2:
        raise ShapeError(f"ids of the {name} are {ids.shape}: give one map [H, W]")
    segments = entry(picture, "segments")
    known = np.array(sorted(segments), dtype=np.int64)
    if len(known) and known[0] <= 0:
        raise DataError(f"the {name} has the segment {known[0]}: ids start at 1, 0 is void")
    place = np.searchsorted(known, ids, side="right")
    wrong = ids != np.append(0, known)[place]
    if wrong.any():
        raise DataError(
            f"ids of the {name} hold {ids[wrong][0]}, which `segments` does not: "
            f"add it, or set its {wrong.sum()} pixels to 0"
        )
    empty = np.bincount(place.ravel(), minlength=len(known) + 1)[1:] == 0
    if empty.any():
        raise DataError(
            f"the {name} has the segment {known[empty][0]}, but none of its pixels: drop it"
        )
    rows = np.array([segments[i] for i in known.tolist()], dtype=np.int64).reshape(-1, 2)
    return _Segments(place, rows[:, 0], rows[:, 1] != 0)


def panoptic_table(
    records: Sequence[PanopticRecord], weights: Any, num_classes: int
) -> dict[str, Floats]:
    """Panoptic quality of each class under weights of the images; NaN of a class without segments.

    Shape:
        weights: [R, B] at least 0, B the number of records
        returns: [R, num_classes] each: pq = sq * rq, sq (mean IoU of the matches, 0 of none), rq
            (F1 of the segments), iou (of the pixels, whatever segments they belong to)

    Raises:
        DataError: a record has a category out of 0..num_classes-1.
    """
    weights = check_weights(weights, len(records))
    tables = {name: np.zeros((len(records), num_classes)) for name in (*_COUNTS, *_PIXELS)}
    for i, record in enumerate(records):
        for places, names in ((record.categories, _COUNTS), (record.classes, _PIXELS)):
            wrong = (places < 0) | (places >= num_classes)
            if wrong.any():
                raise DataError(
                    f"a segment has the category {places[wrong][0]}, but there are "
                    f"{num_classes} classes (0..{num_classes - 1}): give the index of its class"
                )
            for name in names:
                tables[name][i, places] = getattr(record, name)
    iou, tp, fp, fn, both, either = (weights @ table for table in tables.values())
    size = tp + fp / 2 + fn / 2
    sq = np.where(tp > 0, ratio(iou, tp), 0.0)
    return {
        "pq": ratio(iou, size),
        "sq": np.where(size > 0, sq, np.nan),
        "rq": ratio(tp, size),
        "iou": ratio(both, either),
    }


def weighted_pq(
    records: Sequence[PanopticRecord], weights: Any, things: Sequence[bool]
) -> dict[str, Floats]:
    """Panoptic quality under weights of the images: means over the classes that have segments.

    Args:
        things: whether each class is a thing; the others are stuff.

    Shape:
        weights: [R, B]
        returns: [R] each: pq, sq, rq, iou, pq_things, sq_things, ..., pq_stuff, ..., iou_stuff
    """
    return _means(panoptic_table(records, weights, len(things)), things)


def _means(table: dict[str, Floats], things: Sequence[bool]) -> dict[str, Floats]:
    flags = np.asarray(things, dtype=bool)
    parts = {"": np.ones_like(flags), "_things": flags, "_stuff": ~flags}
    return {
        name + part: mean_defined(values[:, chosen])
        for part, chosen in parts.items()
        for name, values in table.items()
    }


class PanopticQuality(RecordMetric[PanopticRecord]):
    """Panoptic quality over everything that was added; pictures as the module says.

    Args:
        things: whether each class is a thing, by its index.
    """

    def __init__(self, things: Sequence[bool]) -> None:
        if not len(things):
            raise OptionError("things is empty: give a flag for each class")
        super().__init__(PanopticRecord)
        self.things = tuple(bool(thing) for thing in things)

    def match(self, pred: Mapping[str, Any], target: Mapping[str, Any]) -> PanopticRecord:
        """The record of one image."""
        return match_panoptic(pred, target)

    def compute(self) -> dict[str, Any]:
        """Figures of what was added so far, in 0..1; NaN where there are no segments.

        Returns:
            pq, sq, rq, iou, and the same with _things and _stuff: floats
            pq_per_class, sq_per_class, rq_per_class, iou_per_class: lists, by the index of the
                class
        """
        weights = np.ones((1, len(self.records)))
        table = panoptic_table(self.records, weights, len(self.things))
        figures: dict[str, Any] = {
            name: float(value[0]) for name, value in _means(table, self.things).items()
        }
        return figures | {f"{name}_per_class": part[0].tolist() for name, part in table.items()}
