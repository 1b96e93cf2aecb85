"""What the rules look at: the data, the machine, and what is settled already."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.params import Params
from segcore.machine import Machine

Size = tuple[int, int]
HALF_SPEED = 3.2  # steps at half size in the time of one
# (settings by dotted key) -> seconds of one training step on this machine.
StepTimer = Callable[[Mapping[str, Any]], float]


@dataclass(frozen=True)
class Decision:
    """A value with its reason.

    Args:
        value: of the key.
        why: with the figures that it follows from.
        sources: what these are facts of: "sizes", "classes", "memory", ...; "you" for what the
            user set.
    """

    value: Any
    why: str
    sources: tuple[str, ...]


@dataclass
class Facts:
    """The facts of one plan; `settings` grows as rule after rule decides.

    Args:
        fingerprint: of the dataset, as prepare gathered it.
        machine: that will train.
        params: as the user wrote them.
        time_step: seconds of a step under the settings so far.
        task: kind of task that is trained.
        settings: values by dotted key, the user's and those decided so far.
    """

    fingerprint: Mapping[str, Any]
    machine: Machine
    params: Params
    time_step: StepTimer
    task: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def pictures(self) -> int:
        """Labelled pictures to train and validate with."""
        return int(self.images("train") + self.images("val"))

    def images(self, split: str) -> int:
        """Pictures of a split."""
        return int(self.fingerprint["images"].get(split, 0))

    @property
    def sizes(self) -> Mapping[str, Any]:
        """distinct, min, median and max of the pictures' (height, width)."""
        found: Mapping[str, Any] = self.fingerprint["sizes"]
        return found

    @property
    def median(self) -> Size:
        """Median (height, width)."""
        height, width = self.sizes["median"]
        return int(height), int(width)

    @property
    def classes(self) -> list[Mapping[str, Any]]:
        """Facts of the classes that occur."""
        return [entry for entry in self.fingerprint["classes"] if entry["pixel_share"] > 0]

    @property
    def seen(self) -> Size:
        """(height, width) of what the model is shown: the crop, else the median picture."""
        crop = self.settings["train.augment.crop"]
        return (int(crop[0]), int(crop[1])) if crop else self.median

    @property
    def step_s(self) -> float:
        """Seconds of one training step."""
        return self.time_step(self.settings)

    @property
    def mean_step_s(self) -> float:
        """Seconds of a step, as a mean over a run of which the first share is at half size."""
        share = float(self.settings["train.progressive"])
        return self.step_s / (1 + (HALF_SPEED - 1) * share)

    @property
    def epoch_pictures(self) -> int:
        """Pictures of one pass."""
        return self.pictures if self.settings["train.refit"] else self.images("train")

    def validation_s(self) -> float:
        """Seconds of one validation, by the pixels that it computes; a third of a step's work."""
        area = math.prod(self.median) * self.images("val")
        step_area = math.prod(self.seen) * self.settings["train.batch_size"]
        return float(self.step_s / 3 * area / step_area)
