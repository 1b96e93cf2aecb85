"""Semantic segmentation as a kind of task: class maps, confusion matrices, palette pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import nn

from segcore.data.targets import ClassMaps, Described, Label, Targets
from segcore.inference import visualize
from segcore.inference.contradictions import Judgement, judge
from segcore.inference.images import ImageArray
from segcore.inference.network import Normalised
from segcore.inference.predictor import Prediction, Predictor
from segcore.inference.spec import PackageSpec
from segcore.metrics import scores
from segcore.tasks.base import Batch, Task
from segcore.tasks.kind import OVERLAYS, Columns, Extras, Floats, Kind, Output, Rows, Served
from segcore.tasks.sections import ClassTable, Column, Heatmap, Section, Shown
from segcore.tasks.semantic import confusions, files
from segcore.tasks.semantic.task import create_semantic_task

ERROR = (226, 46, 60)
VOID = (38, 42, 92)


class SemanticKind(Kind):
    """One class per pixel."""

    title = "Semantic segmentation"
    usage = "print(prediction.mask.shape, prediction.mask.dtype)  # class indices"
    predictor = Predictor
    figure_names: Mapping[str, str] = {
        "miou": "mean IoU",
        "pixel_accuracy": "pixel accuracy",
        "mean_accuracy": "mean accuracy",
        "fw_iou": "frequency-weighted IoU",
    }
    headline = "miou"
    headline_label = "mIoU"
    judges_labels = True
    records_stem = "confusions"
    record_columns = ((confusions.COLUMN, pa.list_(pa.int64())),)
    row_columns = (("class_shares", pa.map_(pa.string(), pa.float64())),)
    served = (Served("", "int64", (-1, -1, -1)),)
    extras = (OVERLAYS, files.CONFIDENCE, files.PROBABILITIES, files.CONTOURS, files.COCO)

    def targets(self, data: Described) -> Targets:
        """Class maps."""
        return ClassMaps()

    def create_task(self, dataset: Any = None, **options: Any) -> Task:
        """See `create_semantic_task`."""
        return create_semantic_task(dataset, **options)

    def random_batch(self, data: Described, *, size: tuple[int, int], count: int) -> Batch:
        """Noise, all of the first class."""
        return {
            "image": torch.randint(256, (count, data.in_channels, *size), dtype=torch.uint8),
            "target": torch.zeros((count, *size), dtype=torch.int64),
        }

    def graph(self, model: nn.Module, spec: PackageSpec) -> nn.Module:
        """Logits, with the normalisation inside."""
        return Normalised(model, spec)

    def serve(self, predictions: Sequence[Prediction]) -> Any:
        """int64 class maps [N, H, W]."""
        return np.stack([prediction.mask.astype(np.int64) for prediction in predictions])

    def record(self, prediction: Prediction, label: Label, data: Described) -> dict[str, Any]:
        """The confusion matrix of one image."""
        return confusions.count(prediction.mask, label, data)

    def records(self, table: pa.Table, data: Described) -> confusions.Matrices:
        """Confusion matrices [B, K, K]."""
        return confusions.read(table, data)

    def figures(self, records: confusions.Matrices, weights: Floats) -> dict[str, Floats]:
        """Of the sum of the matrices."""
        return confusions.figures(records, weights)

    def image_scores(self, records: confusions.Matrices) -> Floats:
        """mIoU of each image over the classes that it has."""
        return scores(records).miou

    def class_table(
        self, records: confusions.Matrices, other: confusions.Matrices | None, data: Described
    ) -> ClassTable:
        """IoU, precision, recall, F1 and the share of the labelled pixels."""
        total = records.sum(0)
        own, pixels = scores(total).per_class(), total.sum(1)
        names = (("iou", "IoU"), ("precision", "precision"), ("recall", "recall"), ("f1", "F1"))
        share = (pixels / max(1, pixels.sum())).tolist()
        return ClassTable(
            data.classes,
            data.palette,
            [
                *(Column(key, name, own[key]) for key, name in names),
                Column("pixel_share", "pixels", share, is_share=True),
            ],
            champion=None if other is None else scores(other.sum(0)).per_class()["iou"],
        )

    def sections(
        self, records: confusions.Matrices, other: confusions.Matrices | None, data: Described
    ) -> Sequence[Section]:
        """The class table and the confusion matrix."""
        confusion = Heatmap(
            records.sum(0), data.classes, "Confusion, % of each actual class", "confusion"
        )
        return [self.class_table(records, other, data), confusion]

    def judge(self, predictor: Predictor, image: ImageArray, label: Label) -> Judgement:
        """Connected regions of one class in the label and another in the prediction."""
        shares = predictor.probabilities(image).numpy()
        return judge(shares, label, ignore_index=predictor.spec.ignore_index)

    def overlay(self, image: ImageArray, prediction: Prediction, spec: PackageSpec) -> Image.Image:
        """The image tinted by class."""
        return visualize.overlay(image, prediction.mask, palette=spec.palette)

    def shown(self, prediction: Prediction, spec: PackageSpec) -> list[Shown]:
        """The classes that occur with their shares, the largest first."""
        colors = dict(zip(spec.classes, spec.palette, strict=True))
        shares = sorted(files.shares(prediction.mask, spec.classes), key=lambda pair: -pair[1])
        return [Shown(name, colors[name], f"{share:.1%}") for name, share in shares]

    def panel(
        self, image: ImageArray, label: Label, prediction: Prediction, spec: PackageSpec
    ) -> Mapping[str, Image.Image]:
        """Image, label, prediction, and what is wrong in red."""
        return {
            "image": Image.fromarray(image.squeeze()),
            "label": visualize.overlay(image, label, palette=spec.palette),
            "prediction": self.overlay(image, prediction, spec),
            "errors": visualize.difference(
                image, prediction.mask, label, ignore_index=spec.ignore_index
            ),
        }

    def contact_sheet(
        self,
        images: Sequence[ImageArray],
        predictions: Sequence[Prediction],
        labels: Sequence[Label],
        spec: PackageSpec,
    ) -> Image.Image:
        """Rows of image, label and prediction above a legend."""
        return visualize.contact_sheet(
            images,
            [prediction.mask for prediction in predictions],
            palette=spec.palette,
            classes=spec.classes,
            truths=labels,
        )

    def legend(self, data: Described) -> list[tuple[str, tuple[int, int, int]]]:
        """The classes, errors, and what has no label."""
        return [*super().legend(data), ("error", ERROR), ("not labelled", VOID)]

    def outputs(self, extras: Extras = ()) -> tuple[Output, ...]:
        """masks/*.png of class indices, with the palette; overlays/*.jpg; confidence/*.png, the
        probability of the class that was predicted, times 255; probabilities/*.npy, float16
        [K, H, W]; contours/*.geojson.
        """
        mask = Output("masks", ".png", files.mask_png)
        known = {
            OVERLAYS: Output(OVERLAYS, ".jpg", self.overlay),
            files.CONFIDENCE: Output(files.CONFIDENCE, ".png", files.confidence_png),
            files.PROBABILITIES: Output(files.PROBABILITIES, ".npy", files.probabilities_npy),
            files.CONTOURS: Output(files.CONTOURS, ".geojson", files.geojson),
        }
        return (mask, *(known[name] for name in known if name in extras))

    def predictor_options(self, extras: Extras) -> dict[str, Any]:
        """`confidence` and `probabilities` are kept where they are asked for."""
        return {name: True for name in (files.CONFIDENCE, files.PROBABILITIES) if name in extras}

    def columns(self, extras: Extras = ()) -> Columns:
        """class_shares; segments, run lengths of each class that occurs, for `coco`."""
        return (*self.row_columns, *(files.SEGMENT_COLUMNS if files.COCO in extras else ()))

    def row(self, prediction: Prediction, spec: PackageSpec, extras: Extras = ()) -> dict[str, Any]:
        """class_shares: class name -> share of the pixels, of the classes that occur."""
        facts: dict[str, Any] = {"class_shares": files.shares(prediction.mask, spec.classes)}
        if files.COCO in extras:
            facts[files.SEGMENTS] = files.segments(prediction.mask)
        return facts

    def write_job(self, out: Path, rows: Rows, spec: PackageSpec, extras: Extras = ()) -> None:
        """coco.json, for `coco`."""
        if files.COCO in extras:
            files.write_coco(out, rows, spec)


KIND = SemanticKind()
