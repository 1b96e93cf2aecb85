"""What a batch means: the one interface between a task and the training loop."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

Batch = Mapping[str, Any]
LossFunction = Callable[[nn.Module, Batch], dict[str, Tensor]]


@dataclass(frozen=True)
class Step:
    """One optimiser step of a task on each batch.

    A task of one model and one loss has one; a GAN has two, which the loop runs in order on every
    batch; a task that trains in phases gives each phase its span of the run.

    Args:
        name: key of this step's optimiser in checkpoints and of its learning rate in metrics.
        loss: (model, batch) -> weighted loss terms; the loop backpropagates their sum.
        parameters: model -> the parameters that this step updates.
        start: fraction of the run, in 0..1, from which the step runs.
        stop: fraction of the run before which it runs.
        lr_factor: multiplies the learning rate.
    """

    name: str
    loss: LossFunction
    parameters: Callable[[nn.Module], Iterable[nn.Parameter]] = nn.Module.parameters
    start: float = 0.0
    stop: float = 1.0
    lr_factor: float = 1.0


class Metric(Protocol):
    """A figure over a whole split, accumulated batch by batch, merged across workers."""

    def update(self, prediction: Any, target: Any) -> None:
        """Add a batch: what `Task.predict` returned, and the batch's "target"."""

    def compute(self) -> dict[str, float]:
        """Figures of everything added so far; NaN where a figure is not defined."""

    def state(self) -> Any:
        """What `merge` of another worker needs; picklable."""

    def merge(self, states: Sequence[Any]) -> None:
        """Replace this state by that of all workers together."""


class Task:
    """Base of every task. The loop calls these methods and knows nothing else about a batch.

    A batch is a mapping that the loop moves to the device (tensors, and lists, tuples and dicts
    of them); "target" is the one key that it reads.
    """

    resizes: bool = False
    """Whether it has `smaller`."""

    def steps(self) -> Sequence[Step]:
        """The optimiser steps taken on each batch; by default one over all parameters."""
        return (Step("model", self.training_step),)

    def training_step(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Weighted loss terms (scalars on the device) of one batch."""
        raise NotImplementedError

    def before_step(self, progress: float) -> None:
        """Called before each batch's optimiser steps.

        Args:
            progress: done share of the run, in 0..1.
        """

    def after_step(self, model: nn.Module) -> None:
        """Called after each batch's optimiser steps (an EMA teacher, say)."""

    def judged(self, model: nn.Module) -> nn.Module:
        """What is validated, and whose weights are kept; of the structure of `model`.

        Args:
            model: that is trained; by default it is the one.
        """
        return model

    def check(self, batch: Batch) -> None:
        """Called with each batch as the loader gives it, before it goes to the device.

        Raises:
            SegcoreError: the labels cannot be meant for this task. On an accelerator the same
                fault would end the process without a word on its cause.
        """

    def smaller(self, batch: Batch) -> Batch:
        """The batch at half of its height and width, for the first part of a progressive run.

        Called where `resizes` is true; gets and gives a batch on the device.
        """
        raise NotImplementedError

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """What `new_metric().update` takes as its first argument; model is in eval mode."""
        raise NotImplementedError

    def new_metric(self) -> Metric:
        """An empty metric for one pass over a validation split."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold for this task beside model and optimisers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
