"""One optimiser batch: every active step of the task, each with its own optimiser."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from segcore.engine.distributed import average_gradients, averages, inner
from segcore.engine.eager import guard_again, spare_compiler, step_plainly
from segcore.engine.meter import TrainMeter
from segcore.engine.optim import create_optimizer, learning_rate_factor
from segcore.engine.options import PRECISIONS, FitOptions
from segcore.engine.sharding import parts_of_optimizer
from segcore.errors import OptionError, ShapeError
from segcore.tasks.base import Batch, Step


@dataclass(frozen=True)
class _Part:
    """A step of the task with what it updates."""

    step: Step
    parameters: list[nn.Parameter]
    optimizer: Optimizer

    def active(self, progress: float) -> bool:
        return self.step.start <= progress and (progress < self.step.stop or self.step.stop >= 1.0)


class Updater:
    """Takes optimiser steps; holds the optimisers and the scaler of fp16 gradients.

    Args:
        steps: the task's steps, in order.
        model: on its device, not wrapped.
        device: where it is.
        options: of the run.
    """

    def __init__(
        self, steps: Sequence[Step], model: nn.Module, *, device: torch.device, options: FitOptions
    ) -> None:
        self.options = options
        self.device = device
        (guard_again if options.compile else spare_compiler)()
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.parts = [self._part(step, model) for step in steps]
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
        used = {id(p) for part in self.parts for p in part.parameters}
        self.select([p for p in self.trainable if id(p) in used])

    def _part(self, step: Step, model: nn.Module) -> _Part:
        parameters = [p for p in step.parameters(model) if p.requires_grad]
        if not parameters:
            raise OptionError(
                f"step {step.name!r} of the task has no parameter to train: "
                "check its `parameters` and requires_grad of the model's"
            )
        options = self.options
        optimizer = create_optimizer(
            options.optimizer,
            parameters,
            lr=options.lr * step.lr_factor,
            weight_decay=options.weight_decay,
            momentum=options.momentum,
        )
        if not options.compile:
            step_plainly(optimizer)
        return _Part(step, parameters, optimizer)

    def learning_rates(self, progress: float) -> dict[str, float]:
        """Learning rate by step name."""
        options = self.options
        factor = learning_rate_factor(
            options.schedule, progress, warmup_fraction=options.warmup_fraction
        )
        return {part.step.name: options.lr * part.step.lr_factor * factor for part in self.parts}

    def autocast(self) -> torch.autocast:
        """The context of forward passes, in training and validation."""
        precision = self.options.precision
        return torch.autocast(
            self.device.type, dtype=PRECISIONS[precision], enabled=precision != "fp32"
        )

    def run(
        self, model: nn.Module, group: Sequence[Batch], *, meter: TrainMeter, progress: float
    ) -> None:
        """Take the steps that are active at this point of the run.

        Args:
            model: as losses call it (wrapped, compiled).
            group: batches on the device, whose gradients are averaged.
            meter: takes the loss terms.
            progress: done share of the run.
        """
        for part in self.parts:
            if part.active(progress):
                self._step(part, model, group, meter=meter, progress=progress)
        self.scaler.update()

    def _step(
        self,
        part: _Part,
        model: nn.Module,
        group: Sequence[Batch],
        *,
        meter: TrainMeter,
        progress: float,
    ) -> None:
        lr = self.learning_rates(progress)[part.step.name]
        for settings in part.optimizer.param_groups:
            settings["lr"] = lr
        alone = len(self.parts) == 1
        if not alone:
            self.select(part.parameters)
        part.optimizer.zero_grad(set_to_none=True)
        prefix = "" if alone else f"{part.step.name}/"
        for index, batch in enumerate(group):
            with _synchronised(model, index == len(group) - 1):
                with self.autocast():
                    terms = part.step.loss(model, batch)
                    loss = _total(terms, part.step.name) / len(group)
                torch.autograd.backward(self.scaler.scale(loss))
            for name, value in terms.items():
                meter.add(prefix + name, value)
        if not averages(model):
            average_gradients(part.parameters)
        self._descend(part)

    def _descend(self, part: _Part) -> None:
        if self.options.clip_norm is not None:
            self.scaler.unscale_(part.optimizer)
            clip_grad_norm_(part.parameters, self.options.clip_norm)
        self.scaler.step(part.optimizer)

    def select(self, parameters: Sequence[nn.Parameter]) -> None:
        """Let gradients flow to these parameters alone."""
        chosen = {id(parameter) for parameter in parameters}
        for parameter in self.trainable:
            parameter.requires_grad_(id(parameter) in chosen)

    def release(self) -> None:
        """Give every parameter its requires_grad back."""
        self.select(self.trainable)

    def state_dict(self) -> dict[str, Any]:
        """Optimisers by step name, and the scaler."""
        optimizers = {part.step.name: part.optimizer.state_dict() for part in self.parts}
        return {"optimizers": optimizers, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`; the caller gives tensors that it does not keep."""
        for part in self.parts:
            stored = parts_of_optimizer(state["optimizers"][part.step.name], part.parameters)
            groups = stored["param_groups"], part.optimizer.param_groups
            for theirs, own in zip(*groups, strict=True):
                if "fused" in own:  # how a step is computed here, not where it was stored
                    theirs["fused"] = own["fused"]
            part.optimizer.load_state_dict(stored)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def _total(terms: dict[str, Tensor], step: str) -> Tensor:
    if not terms:
        raise OptionError(f"step {step!r} of the task returned no loss term: return at least one")
    for name, value in terms.items():
        if value.ndim != 0:
            raise ShapeError(
                f"loss term {name!r} of step {step!r} has shape {tuple(value.shape)}: "
                "reduce it to a scalar"
            )
    return torch.stack([value.float() for value in terms.values()]).sum()


def _synchronised(model: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """DDP averages gradients once per group, at its last batch."""
    original = inner(model)
    if isinstance(original, DistributedDataParallel) and not last:
        return original.no_sync()
    return nullcontext()
