"""Panoptic segmentation as a kind of task: every pixel to an object or to a class of stuff."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from segcore.data.targets import Described, Targets
from segcore.errors import DataError
from segcore.inference.images import ImageArray
from segcore.inference.spec import PackageSpec
from segcore.metrics import PanopticRecord, match_panoptic, panoptic_table, weighted_pq
from segcore.tasks.base import Batch, Task
from segcore.tasks.instance.files import pad
from segcore.tasks.instance.kind import count_things
from segcore.tasks.instance.targets import ObjectLabel, random_objects
from segcore.tasks.kind import OVERLAYS, Extras, Floats, Kind, Output, Rows, Served
from segcore.tasks.panoptic import files, pictures
from segcore.tasks.panoptic.predictor import PanopticPredictor
from segcore.tasks.panoptic.segments import Panoptic, of_label
from segcore.tasks.panoptic.targets import PanopticTargets
from segcore.tasks.panoptic.task import FIGURES, create_panoptic_task
from segcore.tasks.sections import ClassTable, Column, Shown

RECORD = "segments"


@dataclass(frozen=True)
class Matched:
    """Matched segments of a split.

    Args:
        images: a record of each.
        things: per class, whether it is a thing.
    """

    images: Sequence[PanopticRecord]
    things: tuple[bool, ...]

    def table(self, data: Described) -> dict[str, list[float]]:
        """pq, sq, rq and iou by class."""
        weights = np.ones((1, len(self.images)))
        found = panoptic_table(self.images, weights, data.num_classes)
        return {name: values[0].tolist() for name, values in found.items()}


class PanopticKind(Kind):
    """Things and stuff, without overlap."""

    title = "Panoptic segmentation"
    usage = "print(prediction.ids.shape, prediction.segments[0])  # id of the segment of each pixel"
    predictor = PanopticPredictor
    figure_names: Mapping[str, str] = {
        "pq": "panoptic quality",
        "sq": "segmentation quality",
        "rq": "recognition quality",
        "pq_things": "panoptic quality of things",
        "pq_stuff": "panoptic quality of stuff",
        "miou": "mean IoU of stuff",
    }
    headline = "pq"
    headline_label = "PQ"
    records_stem = "segments"
    record_columns = ((RECORD, pa.binary()),)
    row_columns = files.ROW_COLUMNS
    extras = (OVERLAYS, "coco")  # panoptic.json is written in any case
    served = (
        Served("ids", "int32", (-1, -1, -1)),
        Served("counts", "int64", (-1,)),
        Served("classes", "int64", (-1, -1)),
        Served("scores", "float32", (-1, -1)),
    )

    def model_facts(self, data: Described) -> dict[str, int]:
        """`num_classes` counts the things and background, `num_stuff` the others."""
        things = count_things(data)
        return {
            "num_classes": 1 + things,
            "num_stuff": data.num_classes - things,
            "in_channels": data.in_channels,
        }

    def targets(self, data: Described) -> Targets:
        """Boxes, labels, masks, and the map of stuff."""
        return PanopticTargets(data)

    def create_task(self, dataset: Any = None, **options: Any) -> Task:
        """See `create_panoptic_task`."""
        return create_panoptic_task(dataset, **options)

    def random_batch(self, data: Described, *, size: tuple[int, int], count: int) -> Batch:
        """Noise with a grid of objects, and the first stuff around them."""
        batch = random_objects(size, count=count, channels=data.in_channels)
        for target in batch["target"]:
            target["semantic"] = torch.zeros(size, dtype=torch.int64)
        return batch

    def serve(self, predictions: Sequence[Panoptic]) -> dict[str, Any]:
        """Arrays of a batch of images of one size, the number of segments padded to the largest.

        Returns:
            ids: int32 [N, H, W], 0 for none, else k of the segment [n, k - 1] of the others.
            counts: int64 [N], segments of each image; what lies beyond is zeros.
            classes: int64 [N, M], class indices.
            scores: float32 [N, M], of things; 1 of stuff.
        """
        segments = [one.segments for one in predictions]
        scores = [[1.0 if s.score is None else s.score for s in part] for part in segments]
        return {
            "ids": np.stack([one.ids for one in predictions]),
            "counts": np.array([len(part) for part in segments], dtype=np.int64),
            "classes": pad([[s.category for s in part] for part in segments], (), np.int64),
            "scores": pad(scores, (), np.float32),
        }

    def record(self, prediction: Panoptic, label: ObjectLabel, data: Described) -> dict[str, Any]:
        """Segments of one image matched by class."""
        matched = match_panoptic(prediction.scored(), of_label(label, data).scored())
        return {RECORD: matched.to_bytes()}

    def records(self, table: pa.Table, data: Described) -> Matched:
        """Matched segments of every image."""
        try:
            found = [PanopticRecord.from_bytes(one) for one in table.column(RECORD).to_pylist()]
        except (DataError, KeyError, TypeError) as error:
            raise ValueError(f"no records of segments: {error}") from error
        places = np.concatenate([np.zeros(0), *(one.classes for one in found)])
        if (places >= data.num_classes).any():
            raise ValueError(f"{RECORD} have categories beyond {data.num_classes} classes")
        return Matched(found, tuple(data.things))

    def figures(self, records: Matched, weights: Floats) -> dict[str, Floats]:
        """Panoptic quality of the weighted segments, and mean IoU of the stuff."""
        found = weighted_pq(records.images, weights, records.things)
        return {name: found[FIGURES[name]] for name in self.figure_names}

    def image_scores(self, records: Matched) -> Floats:
        """Panoptic quality of each image by itself."""
        each = [weighted_pq([one], np.ones((1, 1)), records.things) for one in records.images]
        return np.array([one["pq"][0] for one in each], dtype=np.float64)

    def class_table(self, records: Matched, other: Matched | None, data: Described) -> ClassTable:
        """Panoptic, segmentation and recognition quality of each class, and its segments."""
        own = records.table(data)
        counts = np.zeros(data.num_classes)
        for one in records.images:
            counts[one.categories] += one.tp + one.fn
        names = (("pq", "PQ"), ("sq", "SQ"), ("rq", "RQ"))
        share = (counts / max(1, counts.sum())).tolist()
        return ClassTable(
            data.classes,
            data.palette,
            [
                *(Column(f"class_{key}", name, own[key]) for key, name in names),
                Column("segment_share", "segments", share, is_share=True),
            ],
            champion=None if other is None else other.table(data)["pq"],
        )

    def overlay(self, image: ImageArray, prediction: Panoptic, spec: PackageSpec) -> Image.Image:
        """Stuff in its class's colour, things in shades of theirs."""
        return pictures.overlay(image, prediction, spec)

    def shown(self, prediction: Panoptic, spec: PackageSpec) -> list[Shown]:
        """The segments, things first, with their scores or shares."""
        return pictures.shown(prediction, spec)

    def panel(
        self, image: ImageArray, label: ObjectLabel, prediction: Panoptic, spec: PackageSpec
    ) -> Mapping[str, Image.Image]:
        """Image, label, prediction, misses and false alarms, and these as crops."""
        return pictures.panel(image, of_label(label, spec), prediction, spec)

    def contact_sheet(
        self,
        images: Sequence[ImageArray],
        predictions: Sequence[Panoptic],
        labels: Sequence[ObjectLabel],
        spec: PackageSpec,
    ) -> Image.Image:
        """Rows of image, label and prediction above a legend."""
        truths = [of_label(label, spec) for label in labels]
        return pictures.contact_sheet(images, predictions, truths, spec)

    def legend(self, data: Described) -> list[tuple[str, tuple[int, int, int]]]:
        """The classes, and colours of errors."""
        return [*super().legend(data), *pictures.LEGEND]

    def outputs(self, extras: Extras = ()) -> tuple[Output, ...]:
        """panoptic/*.png of ids as colours; overlays/*.jpg."""
        main = Output(files.FOLDER, ".png", files.png)
        overlay = Output(OVERLAYS, ".jpg", self.overlay)
        return (main, overlay) if OVERLAYS in extras else (main,)

    def row(self, prediction: Panoptic, spec: PackageSpec, extras: Extras = ()) -> dict[str, Any]:
        """segments: id, class, score, box and area of each."""
        return files.row(prediction)

    def write_job(self, out: Path, rows: Rows, spec: PackageSpec, extras: Extras = ()) -> None:
        """panoptic.json."""
        files.write_coco(out, rows, spec)


KIND = PanopticKind()
