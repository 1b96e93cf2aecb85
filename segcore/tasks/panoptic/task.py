"""The losses of a panoptic model and its panoptic quality, for the training loop."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from segcore.errors import DataError
from segcore.metrics import PanopticQuality
from segcore.tasks.base import Batch
from segcore.tasks.instance.task import InstanceTask, task_facts
from segcore.tasks.panoptic.segments import Panoptic, of_output, of_target

# Figures by their names in `segcore.metrics.weighted_pq`.
FIGURES = {name: name for name in ("pq", "sq", "rq", "pq_things", "pq_stuff")} | {
    "miou": "iou_stuff"
}


class PanopticTask(InstanceTask):
    """Things and stuff; targets also have "semantic" (see `segcore.data.instances`).

    Args:
        mean: per channel, of images in 0..1.
        std: likewise, > 0.
        classes: names, by index.
        things: per class, whether it is a thing.

    Raises:
        OptionError: the numbers of channels do not agree, or there is no thing.
    """

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        classes: Sequence[str],
        things: Sequence[bool],
    ) -> None:
        names = [name for name, thing in zip(classes, things, strict=False) if thing]
        super().__init__(mean=mean, std=std, names=names)
        self.classes = tuple(classes)
        self.things = tuple(things)

    def check(self, batch: Batch) -> None:
        """Refuse labels of no thing, and maps of no stuff.

        Raises:
            DataError: naming the values and the sample.
        """
        super().check(batch)
        most = len(self.things) - sum(self.things)
        for index, target in enumerate(batch["target"]):
            semantic = target["semantic"]
            wrong = semantic[((semantic < 0) | (semantic > most)) & (semantic != 255)]
            if wrong.numel():
                name = batch["id"][index] if "id" in batch else index
                raise DataError(
                    f"the map of {name} holds {wrong.unique().tolist()[:10]}, but there are {most} "
                    f"classes of stuff (0..{most - 1}, {most} for any thing, 255 for none): "
                    "correct the masks"
                )

    def predict(self, model: nn.Module, batch: Batch) -> list[Panoptic]:  # type: ignore[override]
        """The picture of each image."""
        pairs = zip(self.outputs(model, batch), batch["image"], strict=True)
        return [
            of_output(output, (image.shape[-2], image.shape[-1]), self.things)
            for output, image in pairs
        ]

    def new_metric(self) -> "PanopticMetric":  # type: ignore[override]
        """Panoptic quality."""
        return PanopticMetric(self.classes, self.things)


class PanopticMetric:
    """pq, sq, rq, pq_things, pq_stuff, miou (of the stuff), class_pq/<class name>.

    Args:
        classes: names, by index.
        things: per class, whether it is a thing.
    """

    def __init__(self, classes: Sequence[str], things: Sequence[bool]) -> None:
        self.classes = tuple(classes)
        self.quality = PanopticQuality(things)

    def update(
        self, prediction: Sequence[Panoptic], target: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """Add a batch."""
        truths = [of_target(one, self.quality.things).scored() for one in target]
        self.quality.update([one.scored() for one in prediction], truths)

    def compute(self) -> dict[str, float]:
        """Figures by key; NaN where one is not defined."""
        found = self.quality.compute()
        by_class = zip(self.classes, found["pq_per_class"], strict=True)
        return {
            **{name: found[key] for name, key in FIGURES.items()},
            **{f"class_pq/{name}": value for name, value in by_class if not np.isnan(value)},
        }

    def state(self) -> list[bytes]:
        """What `merge` of another worker needs."""
        return self.quality.state()

    def merge(self, states: Sequence[Sequence[bytes]]) -> None:
        """Replace this state by that of all workers together."""
        self.quality.merge(states)


def create_panoptic_task(dataset: Any = None, **options: Any) -> PanopticTask:
    """A `PanopticTask` from the facts of a dataset; see `create_instance_task`.

    Raises:
        OptionError: a fact is missing, or an option is unknown.
    """
    mean, std, classes, things = task_facts("panoptic", dataset, options)
    return PanopticTask(mean=mean, std=std, classes=classes, things=things)
