"""Instance segmentation as a kind of task: objects, each with class, box, mask and score."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from segcore.data.instances import thing_labels
from segcore.data.targets import Described, Targets
from segcore.errors import OptionError
from segcore.inference.images import ImageArray
from segcore.inference.spec import PackageSpec
from segcore.metrics import precision_curves
from segcore.metrics.average_precision import RECALLS
from segcore.tasks.base import Batch, Task
from segcore.tasks.instance import files, pictures, tables
from segcore.tasks.instance import records as scoring
from segcore.tasks.instance.predictor import InstancePrediction, InstancePredictor
from segcore.tasks.instance.targets import ObjectLabel, ObjectTargets, random_objects
from segcore.tasks.instance.task import create_instance_task
from segcore.tasks.kind import OVERLAYS, Extras, Floats, Kind, Output, Rows, Served
from segcore.tasks.sections import ClassTable, Section, Shown

CONTOURS = "contours"
COCO = "coco"


class InstanceKind(Kind):
    """Objects of the classes that are things."""

    title = "Instance segmentation"
    usage = "print(len(prediction), prediction.scores, prediction.classes, prediction.masks.shape)"
    predictor = InstancePredictor
    figure_names: Mapping[str, str] = scoring.FIGURES
    headline = "ap"
    headline_label = "AP"
    records_stem = "objects"
    record_columns = scoring.COLUMNS
    row_columns = files.ROW_COLUMNS
    extras = (OVERLAYS, CONTOURS, COCO)  # coco.json is written in any case
    served = (
        Served("ids", "int32", (-1, -1, -1)),
        Served("counts", "int64", (-1,)),
        Served("classes", "int64", (-1, -1)),
        Served("scores", "float32", (-1, -1)),
        Served("boxes", "float32", (-1, -1, 4)),
    )

    def model_facts(self, data: Described) -> dict[str, int]:
        """`num_classes` counts the things and background, as torchvision does.

        Raises:
            OptionError: no class is a thing.
        """
        return {"num_classes": 1 + count_things(data), "in_channels": data.in_channels}

    def targets(self, data: Described) -> Targets:
        """Boxes, labels, masks."""
        return ObjectTargets(data.things)

    def create_task(self, dataset: Any = None, **options: Any) -> Task:
        """See `create_instance_task`."""
        return create_instance_task(dataset, **options)

    def random_batch(self, data: Described, *, size: tuple[int, int], count: int) -> Batch:
        """Noise with a grid of objects."""
        return random_objects(size, count=count, channels=data.in_channels)

    def serve(self, predictions: Sequence[InstancePrediction]) -> dict[str, Any]:
        """Arrays of a batch of images of one size, the number of objects padded to the largest.

        Returns:
            ids: int32 [N, H, W], 0 for none, else k of the object [n, k - 1] of the others; where
                objects overlap, that of the higher score.
            counts: int64 [N], objects of each image; what lies beyond is zeros.
            classes: int64 [N, M], class indices.
            scores: float32 [N, M].
            boxes: float32 [N, M, 4] of (x0, y0, x1, y1) in pixels.
        """
        return {
            "ids": np.stack([one.id_map().astype(np.int32) for one in predictions]),
            "counts": np.array([len(one) for one in predictions], dtype=np.int64),
            "classes": files.pad([one.classes for one in predictions], (), np.int64),
            "scores": files.pad([one.scores for one in predictions], (), np.float32),
            "boxes": files.pad([one.boxes for one in predictions], (4,), np.float32),
        }

    def record(
        self, prediction: InstancePrediction, label: ObjectLabel, data: Described
    ) -> dict[str, Any]:
        """Detections matched to the objects of one image."""
        labels = thing_labels(data.things)
        found = prediction.detections
        size = list(label.size)
        truth = {
            "labels": [labels[one.category] for one in label.instances],
            "masks": [{"size": size, "counts": one.counts} for one in label.instances],
            "iscrowd": [one.iscrowd for one in label.instances],
        }
        matched = scoring.match(found.scored(), truth, class_agnostic=found.class_agnostic)
        return matched.columns()

    def records(self, table: pa.Table, data: Described) -> scoring.ObjectRecords:
        """Matched detections of every image."""
        return scoring.read(table)

    def figures(self, records: scoring.ObjectRecords, weights: Floats) -> dict[str, Floats]:
        """COCO's figures, recall of proposals, and the Bowl's score."""
        return scoring.figures(records, weights)

    def image_scores(self, records: scoring.ObjectRecords) -> Floats:
        """AP of each image by itself."""
        return scoring.scores(records)

    def class_table(
        self,
        records: scoring.ObjectRecords,
        other: scoring.ObjectRecords | None,
        data: Described,
    ) -> ClassTable:
        """AP at all, at single thresholds and by size, of each thing."""
        return tables.class_table(records, other, data)

    def sections(
        self,
        records: scoring.ObjectRecords,
        other: scoring.ObjectRecords | None,
        data: Described,
    ) -> Sequence[Section]:
        """The class table, and precision over recall."""
        curves = precision_curves(records.precision)
        return [self.class_table(records, other, data), tables.curves(curves, RECALLS, data)]

    def overlay(
        self, image: ImageArray, prediction: InstancePrediction, spec: PackageSpec
    ) -> Image.Image:
        """Objects in colours of their own, with class and score."""
        return pictures.overlay(image, prediction, spec)

    def shown(self, prediction: InstancePrediction, spec: PackageSpec) -> list[Shown]:
        """The objects that are drawn, with their scores."""
        return pictures.shown(prediction, spec)

    def panel(
        self,
        image: ImageArray,
        label: ObjectLabel,
        prediction: InstancePrediction,
        spec: PackageSpec,
    ) -> Mapping[str, Image.Image]:
        """Image, label, prediction, misses and false alarms, and these as crops."""
        return pictures.panel(image, label, prediction, spec)

    def contact_sheet(
        self,
        images: Sequence[ImageArray],
        predictions: Sequence[InstancePrediction],
        labels: Sequence[ObjectLabel],
        spec: PackageSpec,
    ) -> Image.Image:
        """Rows of image, label and prediction."""
        return pictures.contact_sheet(images, predictions, labels, spec)

    def legend(self, data: Described) -> list[tuple[str, tuple[int, int, int]]]:
        """Colours of errors; objects have colours of their own."""
        return pictures.LEGEND

    def outputs(self, extras: Extras = ()) -> tuple[Output, ...]:
        """instances/*.png of ids; overlays/*.jpg; contours/*.geojson."""
        main = Output("instances", ".png", files.id_png)
        known = {
            OVERLAYS: Output(OVERLAYS, ".jpg", self.overlay),
            CONTOURS: Output(CONTOURS, ".geojson", files.geojson),
        }
        return (main, *(known[name] for name in known if name in extras))

    def row(
        self, prediction: InstancePrediction, spec: PackageSpec, extras: Extras = ()
    ) -> dict[str, Any]:
        """objects: class, score, box, area and run lengths of each."""
        return files.row(prediction)

    def write_job(self, out: Path, rows: Rows, spec: PackageSpec, extras: Extras = ()) -> None:
        """coco.json."""
        files.write_coco(out, rows, spec)


def count_things(data: Described) -> int:
    """Classes that are things.

    Raises:
        OptionError: none is.
    """
    count = sum(data.things)
    if not count:
        raise OptionError(
            f"none of {', '.join(data.classes)} is a thing: a model of objects needs one; say in "
            "the dataset's `things` which classes are countable, or take a semantic model"
        )
    return count


KIND = InstanceKind()
