"""Semi-supervised segmentation as a kind: it is trained in its own way, all else is semantic's."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from segcore.data.image_labels import StrongView
from segcore.data.streams import LABELLED, UNLABELLED, WEAK, create_streams
from segcore.data.targets import Described
from segcore.errors import OptionError
from segcore.tasks.base import Batch, Task
from segcore.tasks.kind import Kind
from segcore.tasks.semantic import semantic_arguments
from segcore.tasks.semantic.kind import SemanticKind
from segcore.tasks.semantic.task import OPTIONS
from segcore.tasks.semi_supervised.adversarial import AdversarialTask, WeakAdversarialTask
from segcore.tasks.semi_supervised.decoupled import DecoupledTask
from segcore.tasks.semi_supervised.mean_teacher import MeanTeacherTask
from segcore.tasks.semi_supervised.streams import StreamsTask


class Method(NamedTuple):
    """A way to learn from images without masks.

    Args:
        task: what `fit` trains by.
        streams: that a batch has.
        strong: whether images without masks come in a second view.
    """

    task: type[StreamsTask]
    streams: tuple[str, ...]
    strong: bool = False


MEAN_TEACHER = Method(MeanTeacherTask, (LABELLED, UNLABELLED), strong=True)
# By architecture, and whether its option `weak` says that classes of images are known.
METHODS = {
    ("decouplednet", False): Method(DecoupledTask, (LABELLED, WEAK)),
    ("gan", False): Method(AdversarialTask, (LABELLED, UNLABELLED)),
    ("gan", True): Method(WeakAdversarialTask, (LABELLED, WEAK)),
}


class SemiSupervisedKind(SemanticKind):
    """One class per pixel, from masks of some of the images.

    Args:
        method: of the architecture; the mean teacher trains any semantic one.
    """

    title = "Semi-supervised semantic segmentation"
    extends = "semantic"

    def __init__(self, method: Method = MEAN_TEACHER) -> None:
        self.method = method

    def of(self, architecture: str, options: Mapping[str, Any]) -> Kind:
        """With the method that the architecture was published with, else the mean teacher."""
        weak = bool(options.get("weak"))
        return SemiSupervisedKind(METHODS.get((architecture, weak), MEAN_TEACHER))

    def create_task(self, dataset: Any = None, **options: Any) -> Task:
        """The method's task.

        Args:
            dataset: says what the labels are.
            options: of the method's task, and of `semantic_arguments`.

        Raises:
            OptionError: an option is unknown or wrong.
        """
        parameters = inspect.signature(self.method.task).parameters.values()
        own = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        for name in options:
            if name not in (*own, *OPTIONS):
                raise OptionError(
                    f"{self.method.task.__name__} has no option {name}; known: "
                    f"{', '.join([*own, *OPTIONS])}"
                )
        given = {name: options.pop(name) for name in own if name in options}
        return self.method.task(**given, **semantic_arguments(dataset, **options))

    def create_loaders(self, dataset: Any, **options: Any) -> tuple[Any, Any]:
        """See `segcore.data.streams.create_streams`."""
        strong = StrongView() if self.method.strong else None
        return create_streams(dataset, streams=self.method.streams, strong=strong, **options)

    def random_batch(self, data: Described, *, size: tuple[int, int], count: int) -> Batch:
        """Noise in every stream, all of it of the first class."""
        return {name: self._random(name, data, size, count) for name in self.method.streams}

    def _random(self, stream: str, data: Described, size: Sequence[int], count: int) -> Batch:
        batch = super().random_batch(data, size=(size[0], size[1]), count=count)
        if stream == LABELLED:
            return batch
        present = torch.zeros(count, data.num_classes)
        present[:, 0] = 1.0
        return {"image": batch["image"], "strong": batch["image"], "target": present}


KIND = SemiSupervisedKind()
