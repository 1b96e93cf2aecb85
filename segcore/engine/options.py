"""The options of a run, checked before any work."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from segcore.engine.optim import OPTIMIZERS, SCHEDULES
from segcore.errors import OptionError, unknown_name
from segcore.tasks.base import Step, Task

PRECISIONS: dict[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """What `fit` was asked for; see there. Building one checks every value.

    Raises:
        OptionError: a value is out of range.
        UnknownNameError: no optimiser, schedule or precision of that name.
    """

    epochs: int
    optimizer: str
    lr: float
    weight_decay: float
    momentum: float
    schedule: str
    warmup_fraction: float
    precision: str
    channels_last: bool
    compile: bool
    accumulate: int
    clip_norm: float | None
    ema_decay: float | None
    max_minutes: float | None
    report_steps: int | None
    seed: int
    progressive: float = 0.0
    shard: bool = False

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("optimizer", self.optimizer, list(OPTIMIZERS)),
            ("schedule", self.schedule, list(SCHEDULES)),
            ("precision", self.precision, list(PRECISIONS)),
        ):
            if name not in known:
                raise unknown_name(kind, name, known)
        _whole("epochs", self.epochs)
        _whole("accumulate", self.accumulate)
        if self.report_steps is not None:
            _whole("report_steps", self.report_steps)
        _number("lr", self.lr, above=0.0)
        _number("weight_decay", self.weight_decay, least=0.0)
        _number("momentum", self.momentum, least=0.0, below=1.0)
        _number("warmup_fraction", self.warmup_fraction, least=0.0, below=1.0)
        _number("progressive", self.progressive, least=0.0, below=1.0)
        if self.clip_norm is not None:
            _number("clip_norm", self.clip_norm, above=0.0)
        if self.ema_decay is not None:
            _number("ema_decay", self.ema_decay, above=0.0, below=1.0)
        if self.max_minutes is not None:
            _number("max_minutes", self.max_minutes, above=0.0)


def _whole(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{name} is {value!r}: give a whole number of at least 1")


def _number(
    name: str,
    value: float,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    bounds = [
        f"{sign} {bound:g}"
        for sign, bound in ((">=", least), (">", above), ("<", below))
        if bound is not None
    ]
    right = (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (below is None or value < below)
    )
    if not right:
        raise OptionError(f"{name} is {value!r}: give a number {' and '.join(bounds)}")


def check_resizes(task: Task, progressive: float) -> None:
    """Refuse a progressive run of a task that cannot halve its batches.

    Raises:
        OptionError: it cannot.
    """
    if progressive and not task.resizes:
        raise OptionError(
            f"progressive is {progressive!r}, but {type(task).__name__} cannot halve its batches: "
            "give 0"
        )


def check_steps(steps: Sequence[Step]) -> None:
    """Refuse steps that share a name, have an empty span, or leave a part of the run idle.

    Raises:
        OptionError: says which.
    """
    names = [step.name for step in steps]
    if not names or len(set(names)) < len(names):
        raise OptionError(f"the task's steps are named {names}: give at least one, each its own")
    reached = 0.0
    for step in sorted(steps, key=lambda step: step.start):
        if not 0.0 <= step.start < step.stop <= 1.0:
            raise OptionError(
                f"step {step.name!r} spans {step.start:g}..{step.stop:g}: "
                "start and stop are fractions of the run, 0 <= start < stop <= 1"
            )
        if step.start > reached:
            break
        reached = max(reached, step.stop)
    if reached < 1.0:
        raise OptionError(
            f"no step of the task runs from {reached:g} of the run on: "
            "let the spans of the steps cover 0..1"
        )
