"""Optimisers by name, and learning-rate schedules as pure functions of progress in 0..1."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from segcore.errors import unknown_name

POLY_POWER = 0.9
STEP_MILESTONES = (2 / 3, 8 / 9)
STEP_GAMMA = 0.1
WARMUP_START = 1e-3

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
    "sgd": SGD,
}


def constant(progress: float) -> float:
    """The learning rate as given, to the end."""
    return 1.0


def poly(progress: float) -> float:
    """(1 - p)^0.9.

    Reference: DeepLab, Chen et al. 2017, arXiv:1606.00915.
    """
    return float((1.0 - progress) ** POLY_POWER)


def cosine(progress: float) -> float:
    """(1 + cos(pi p)) / 2.

    Reference: SGDR, Loshchilov & Hutter 2017, arXiv:1608.03983.
    """
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def step(progress: float) -> float:
    """A tenth from 2/3 and a hundredth from 8/9 of the run on.

    Reference: the 60k/80k/90k schedule of Mask R-CNN, He et al. 2017, arXiv:1703.06870.
    """
    return STEP_GAMMA ** sum(progress >= milestone for milestone in STEP_MILESTONES)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": constant,
    "cosine": cosine,
    "poly": poly,
    "step": step,
}


def learning_rate_factor(schedule: str, progress: float, *, warmup_fraction: float = 0.0) -> float:
    """What the learning rate is multiplied by at a point of the run.

    The factor rises in a line from 0.001 to 1 over the warm-up; the schedule runs over the rest.

    Args:
        schedule: a name of `SCHEDULES`.
        progress: done share of the run; clamped to 0..1.
        warmup_fraction: share of the run, in 0..1 (1 excluded), that warms up.

    Raises:
        UnknownNameError: no schedule of that name.
    """
    if schedule not in SCHEDULES:
        raise unknown_name("schedule", schedule, SCHEDULES)
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup_fraction:
        return WARMUP_START + (1.0 - WARMUP_START) * progress / warmup_fraction
    return SCHEDULES[schedule]((progress - warmup_fraction) / (1.0 - warmup_fraction))


def create_optimizer(
    name: str,
    parameters: Sequence[nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
) -> Optimizer:
    """An optimiser over parameters that lie on one device, in its fused form where there is one.

    Args:
        name: a name of `OPTIMIZERS`.
        parameters: what it updates.
        lr: learning rate; the loop sets it again before every step.
        weight_decay: L2 penalty, decoupled for adamw.
        momentum: of sgd and rmsprop; Adam's forms keep their betas (0.9, 0.999).

    Raises:
        UnknownNameError: no optimiser of that name.
    """
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
    if name in ("sgd", "rmsprop"):
        options["momentum"] = momentum
    if name != "rmsprop":
        options["fused"] = all(_fusable(parameter) for parameter in parameters)
    return OPTIMIZERS[name](parameters, **options)


def _fusable(parameter: nn.Parameter) -> bool:
    if hasattr(parameter, "full_tensor"):  # a part of one, for which torch has no fused SGD
        return False
    return parameter.device.type in ("cpu", "cuda") and torch.is_floating_point(parameter)
