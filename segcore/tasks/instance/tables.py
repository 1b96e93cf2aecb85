"""Sections of the report on objects."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from segcore.data.targets import Described
from segcore.metrics import precision_table
from segcore.metrics.matching import AREAS
from segcore.metrics.records import mean_defined
from segcore.tasks.instance.records import ObjectRecords
from segcore.tasks.sections import ClassTable, Column, Curves

Floats = NDArray[np.float64]

ANY = "any object"
ANY_COLOR = (90, 120, 200)
SHOWN = {0: "0.5", 5: "0.75", 9: "0.95"}  # thresholds whose curves are drawn


def class_table(found: ObjectRecords, other: ObjectRecords | None, data: Described) -> ClassTable:
    """AP of each thing: over all thresholds, at 0.5 and 0.75, by size; and how many there are.

    A model that tells no classes has one row.
    """
    labels = shown_labels(found, data)
    own = _by_class(found, labels)
    champion = None
    if other is not None:
        before = _by_class(other, labels)
        champion = [before[label]["class_ap"] for label in labels]
    names = [("class_ap", "AP"), ("ap50", "AP50"), ("ap75", "AP75")]
    names += [(f"ap_{area}", f"AP {area}") for area in AREAS if area != "all"]
    counts = np.array([own[label]["objects"] for label in labels])
    share = (counts / max(1, counts.sum())).tolist()
    return ClassTable(
        [name_of(label, data) for label in labels],
        [color_of(label, data) for label in labels],
        [
            *(Column(key, name, [own[label][key] for label in labels]) for key, name in names),
            Column("object_share", "objects", share, is_share=True),
        ],
        champion=champion,
    )


def shown_labels(found: ObjectRecords, data: Described) -> list[int]:
    """Labels of all things; 0 alone where the records tell no classes."""
    seen = {int(label) for record in found.precision for label in record.truth_labels}
    seen |= {int(label) for record in found.precision for label in record.labels}
    return [0] if 0 in seen else list(range(1, 1 + sum(data.things)))


def _by_class(found: ObjectRecords, labels: Sequence[int]) -> dict[int, dict[str, float]]:
    table = precision_table(found.precision, np.ones((1, len(found))), limits=(1,))
    place = {int(label): index for index, label in enumerate(table.labels)}
    rows = {}
    for label in labels:
        if label not in place:
            names = ("class_ap", "ap50", "ap75", *(f"ap_{area}" for area in AREAS))
            rows[label] = {**dict.fromkeys(names, math.nan), "objects": 0.0}
            continue
        values = table.ap[0, place[label]]  # [A, T]
        by_area = mean_defined(values).tolist()
        objects = sum(
            float(record.truths[record.truth_labels == label, 0].sum())
            for record in found.precision
        )
        rows[label] = {
            "class_ap": by_area[0],
            "ap50": float(values[0, 0]),
            "ap75": float(values[0, 5]),
            **{f"ap_{area}": by_area[i] for i, area in enumerate(AREAS)},
            "objects": objects,
        }
    return rows


def curves(found: Mapping[int, Floats], recalls: Floats, data: Described) -> Curves:
    """Precision over recall of each class: at three thresholds of one, at 0.5 of several."""
    series = {}
    for label, precision in found.items():
        for index, threshold in SHOWN.items() if len(found) == 1 else [(0, SHOWN[0])]:
            name = f"{name_of(label, data)}, IoU {threshold}"
            series[name] = (recalls.tolist(), precision[index].tolist())
    return Curves(series, "recall", "precision", "Precision over recall", "precision_recall")


def name_of(label: int, data: Described) -> str:
    """Name of a label's class."""
    return ANY if label == 0 else data.classes[_things(data)[label - 1]]


def color_of(label: int, data: Described) -> tuple[int, int, int]:
    """Colour of a label's class."""
    return ANY_COLOR if label == 0 else data.palette[_things(data)[label - 1]]


def _things(data: Described) -> list[int]:
    return [index for index, thing in enumerate(data.things) if thing]
