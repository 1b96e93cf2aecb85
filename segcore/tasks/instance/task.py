"""The losses of a detector and the figures of its objects, for the training loop."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segcore.errors import DataError, OptionError, ShapeError
from segcore.metrics import InstanceRecord, match_image, precision_table, weighted_ar
from segcore.metrics.average_precision import summary
from segcore.metrics.records import mean_defined
from segcore.tasks.base import Batch, Task
from segcore.tasks.instance.detections import Detections, compress
from segcore.tasks.instance.records import packed

# Probabilities of a hundred masks take 400 bytes a pixel: 0.8 GB at once.
VALIDATION_PIXELS = 2**21
RECALLED = 100  # proposals that validation counts


class InstanceTask(Task):
    """Objects: the model computes its losses itself, as torchvision's detectors do.

    A batch has "image" (list of uint8 0..255, or float 0..1; [C, H, W]) and "target" (list of the
    dicts that `segcore.data.instances` describes).

    Args:
        mean: per channel, of images in 0..1.
        std: likewise, > 0.
        names: of the things, by label from 1 on.

    Raises:
        OptionError: the numbers of channels do not agree, or there is no thing.
    """

    def __init__(
        self, *, mean: Sequence[float], std: Sequence[float], names: Sequence[str]
    ) -> None:
        if len(mean) != len(std) or min(std, default=0.0) <= 0:
            raise OptionError(
                f"mean is {tuple(mean)} and std {tuple(std)}: give one of each per channel, std > 0"
            )
        if not names:
            raise OptionError(
                "no class is a thing: a model of objects needs one; say in the dataset's `things` "
                "which classes are countable, or take a semantic model"
            )
        self.names = tuple(names)
        self._mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)

    def normalise(self, images: Sequence[Tensor]) -> list[Tensor]:
        """(x - mean) / std of images in 0..1; uint8 is scaled by 1/255 first.

        Raises:
            ShapeError: an image has another number of channels.
        """
        normal = []
        for image in images:
            if image.ndim != 3 or image.shape[0] != len(self._mean):
                raise ShapeError(
                    f"an image is {tuple(image.shape)}, expected [{len(self._mean)}, H, W]: "
                    "mean and std say the number of channels"
                )
            if self._mean.device != image.device:
                self._mean, self._std = self._mean.to(image.device), self._std.to(image.device)
            scaled = image.float() if image.is_floating_point() else image.float() / 255.0
            normal.append((scaled - self._mean) / self._std)
        return normal

    def check(self, batch: Batch) -> None:
        """Refuse labels that are of no thing: an accelerator would end the process on them.

        Raises:
            DataError: naming the labels and the sample.
        """
        for index, target in enumerate(batch["target"]):
            labels = target["labels"]
            wrong = labels[(labels < 1) | (labels > len(self.names))]
            if wrong.numel():
                name = batch["id"][index] if "id" in batch else index
                raise DataError(
                    f"objects of {name} have labels {wrong.unique().tolist()[:10]}, but there are "
                    f"{len(self.names)} things (1..{len(self.names)}): correct the annotations"
                )

    def training_step(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The model's own losses."""
        losses: dict[str, Tensor] = model(self.normalise(batch["image"]), batch["target"])
        return losses

    def outputs(self, model: nn.Module, batch: Batch) -> list[dict[str, Tensor]]:
        """What the model says of each image, as many at a time as the memory of masks allows."""
        found: list[dict[str, Tensor]] = []
        part: list[Tensor] = []
        for image in batch["image"]:
            pixels = (len(part) + 1) * max(x.shape[-2] * x.shape[-1] for x in [*part, image])
            if part and pixels > VALIDATION_PIXELS:
                found += model(self.normalise(part))
                part = []
            part.append(image)
        return found + (model(self.normalise(part)) if part else [])

    def predict(self, model: nn.Module, batch: Batch) -> list[Detections]:
        """The objects of each image."""
        agnostic = getattr(model, "proposals", False) is True
        pairs = zip(self.outputs(model, batch), batch["image"], strict=True)
        return [
            compress(output, (image.shape[-2], image.shape[-1]), class_agnostic=agnostic)
            for output, image in pairs
        ]

    def new_metric(self) -> "InstanceMetric":
        """Average precision and recall."""
        return InstanceMetric(self.names)


class InstanceMetric:
    """ap, ap50, ap75, ap_small, ap_medium, ap_large, ar100, class_ap/<class name>.

    Of a model without classes, all are taken for one.

    Args:
        names: of the things, by label from 1 on.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.precision: list[InstanceRecord] = []
        self.recall: list[InstanceRecord] = []

    def update(self, prediction: Sequence[Detections], target: Sequence[Mapping[str, Any]]) -> None:
        """Add a batch."""
        for found, objects in zip(prediction, target, strict=True):
            scored, truth = packed(found.scored()), packed(objects)
            recall = match_image(scored, truth, max_detections=RECALLED, class_agnostic=True)
            self.recall.append(recall)
            same = found.class_agnostic
            self.precision.append(recall if same else match_image(scored, truth))

    def compute(self) -> dict[str, float]:
        """Figures by key; NaN where one is not defined."""
        weights = np.ones((1, len(self.precision)))
        table = precision_table(self.precision, weights)
        found = summary(table)
        names = [name for name in found if name.startswith("ap")]
        figures = {name: float(found[name][0]) for name in names}
        recall = weighted_ar(self.recall, weights, limits=(RECALLED,))
        figures["ar100"] = float(recall[f"ar_{RECALLED}"][0])
        by_class = mean_defined(table.ap[0, :, 0])
        for label, value in zip(table.labels.tolist(), by_class.tolist(), strict=True):
            if label > 0:  # 0 takes all classes for one
                figures[f"class_ap/{self.names[label - 1]}"] = value
        return figures

    def state(self) -> dict[str, list[bytes]]:
        """What `merge` of another worker needs."""
        return {
            "precision": [record.to_bytes() for record in self.precision],
            "recall": [record.to_bytes() for record in self.recall],
        }

    def merge(self, states: Sequence[Mapping[str, Sequence[bytes]]]) -> None:
        """Replace this state by that of all workers together."""
        for name in ("precision", "recall"):
            joined = [InstanceRecord.from_bytes(data) for state in states for data in state[name]]
            setattr(self, name, joined)


def create_instance_task(dataset: Any = None, **options: Any) -> InstanceTask:
    """An `InstanceTask` from the facts of a dataset.

    `loss`, `class_weights` and the loss's `options` are taken, as a params file always names a
    loss, and change nothing: the losses are part of such a model.

    Args:
        dataset: has `mean`, `std`, `classes` and `things`.
        options: any of these in its place.

    Raises:
        OptionError: a fact is missing, or an option is unknown.
    """
    mean, std, classes, things = task_facts("instance", dataset, options)
    names = [name for name, thing in zip(classes, things, strict=False) if thing]
    return InstanceTask(mean=mean, std=std, names=names)


FACTS = ("mean", "std", "classes", "things")
_OF_LOSSES = ("loss", "class_weights", "options")


def task_facts(kind: str, dataset: Any, options: Mapping[str, Any]) -> tuple[Any, ...]:
    """`FACTS`, from `options` or the dataset.

    Raises:
        OptionError: a fact is missing, or an option is unknown.
    """
    unknown = sorted(set(options) - {*FACTS, *_OF_LOSSES})
    if unknown:
        raise OptionError(
            f"task {kind} has no option {', '.join(unknown)}; known: {', '.join(FACTS)}"
        )
    missing = [name for name in FACTS if name not in options]
    if dataset is None and missing:
        raise OptionError(f"task {kind} lacks {missing[0]}: give a dataset, or {missing[0]}=...")
    return tuple(options[n] if n in options else getattr(dataset, n) for n in FACTS)
