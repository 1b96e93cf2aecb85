"""The training loop: one generator of epochs for every task, its optimisers and its checkpoints."""

from segcore.engine.checkpoint import CheckpointStore
from segcore.engine.fit import Epoch, fit
from segcore.engine.gradients import GradientHistogram
from segcore.engine.optim import OPTIMIZERS, SCHEDULES, learning_rate_factor
from segcore.engine.options import PRECISIONS

__all__ = [
    "OPTIMIZERS",
    "PRECISIONS",
    "SCHEDULES",
    "CheckpointStore",
    "Epoch",
    "GradientHistogram",
    "fit",
    "learning_rate_factor",
]
