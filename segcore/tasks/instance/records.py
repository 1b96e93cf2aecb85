"""What is kept of each image to score objects under any weights of the images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segcore.errors import DataError
from segcore.metrics import (
    BowlRecord,
    InstanceRecord,
    match_bowl,
    match_image,
    precision_table,
    weighted_ap,
    weighted_ar,
    weighted_bowl,
)
from segcore.metrics.masks import pack_masks
from segcore.metrics.records import mean_defined

Floats = NDArray[np.float64]

PROPOSALS = 1000  # that recall counts, COCO's largest limit
FIGURES = {
    "ap": "mask AP",
    "ap50": "AP at IoU 0.5",
    "ap75": "AP at IoU 0.75",
    "ap_small": "AP, small",
    "ap_medium": "AP, medium",
    "ap_large": "AP, large",
    "ar10": "recall of 10 proposals",
    "ar100": "recall of 100 proposals",
    "ar1000": "recall of 1000 proposals",
    "dsb": "score of the 2018 Data Science Bowl",
}
COLUMNS = (("precision", pa.binary()), ("recall", pa.binary()), ("bowl", pa.binary()))


@dataclass(frozen=True)
class ObjectRecord:
    """One image.

    Args:
        precision: by class; of models without classes, all as one.
        recall: all classes as one, up to `PROPOSALS`.
        bowl: at a score of 0.5.
    """

    precision: InstanceRecord
    recall: InstanceRecord
    bowl: BowlRecord

    def columns(self) -> dict[str, bytes]:
        """Values of `COLUMNS`."""
        return {name: getattr(self, name).to_bytes() for name, _ in COLUMNS}


@dataclass(frozen=True)
class ObjectRecords:
    """All images of a split, in order."""

    precision: Sequence[InstanceRecord]
    recall: Sequence[InstanceRecord]
    bowl: Sequence[BowlRecord]

    def __len__(self) -> int:
        return len(self.precision)

    @classmethod
    def of(cls, records: Sequence[ObjectRecord]) -> "ObjectRecords":
        """From those of single images."""
        return cls(*([getattr(one, name) for one in records] for name, _ in COLUMNS))

    def __iter__(self) -> Iterator[ObjectRecord]:
        return map(ObjectRecord, self.precision, self.recall, self.bowl)


def match(
    pred: Mapping[str, Any], target: Mapping[str, Any], *, class_agnostic: bool = False
) -> ObjectRecord:
    """Match the objects found on one image to those that are there.

    Args:
        pred: "labels", "scores", "masks", as `segcore.metrics.match_image` takes them.
        target: "labels", "masks", "iscrowd".
        class_agnostic: precision takes all classes for one, as the model does.
    """
    pred, target = packed(pred), packed(target)
    recall = match_image(pred, target, max_detections=PROPOSALS, class_agnostic=True)
    return ObjectRecord(
        match_image(pred, target, class_agnostic=class_agnostic),
        recall,
        match_bowl(pred, target),
    )


def packed(objects: Mapping[str, Any]) -> dict[str, Any]:
    """The objects of an image with their masks packed, once for all that compares them."""
    return {**objects, "masks": pack_masks(objects["masks"])}


def read(table: pa.Table) -> ObjectRecords:
    """The records of a table with `COLUMNS`.

    Raises:
        ValueError: they are no such records.
    """
    try:
        precision, recall, bowl = (table.column(name).to_pylist() for name, _ in COLUMNS)
        return ObjectRecords(
            [InstanceRecord.from_bytes(data) for data in precision],
            [InstanceRecord.from_bytes(data) for data in recall],
            [BowlRecord.from_bytes(data) for data in bowl],
        )
    except (DataError, KeyError, TypeError) as error:
        raise ValueError(f"no records of objects: {error}") from error


def figures(records: ObjectRecords, weights: Floats) -> dict[str, Floats]:
    """`FIGURES` [R] under weights [R, B] of the images."""
    found = weighted_ap(records.precision, weights)
    recall = weighted_ar(records.recall, weights)
    found |= {name.replace("_", ""): recall[name] for name in ("ar_10", "ar_100", "ar_1000")}
    found |= weighted_bowl(records.bowl, weights)
    return {name: found[name] for name in FIGURES}


def scores(records: ObjectRecords) -> Floats:
    """AP [B] of each image by itself; NaN of one without objects, 0 if any were found there."""
    values = np.full(len(records), np.nan)
    for index, record in enumerate(records):
        table = precision_table([record.precision], np.ones((1, 1)), limits=(1,))
        if len(table.labels):
            values[index] = mean_defined(table.ap[0, :, 0].ravel())
        elif record.bowl.fp.any():
            values[index] = 0.0
    return values
