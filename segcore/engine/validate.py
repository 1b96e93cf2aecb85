"""One pass over a validation split."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from segcore.engine.batches import open_epoch, to_device
from segcore.engine.distributed import gather, world_size
from segcore.engine.sharding import put_together
from segcore.tasks.base import Task


def validate(
    task: Task,
    model: nn.Module,
    loader: Any,
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
    channels_last: bool = False,
) -> dict[str, float]:
    """The figures of the task's metric over the shares of all ranks. A collective call.

    Args:
        task: predicts and measures.
        model: on `device`, not wrapped; its training flags are kept.
        loader: this rank's share; read from its beginning.
        device: where to.
        autocast: makes the context of a forward pass.
        channels_last: lay out 4-D inputs that way.
    """
    metric = task.new_metric()
    with evaluating(model), torch.no_grad(), put_together(model):
        for batch in open_epoch(loader, 0):
            task.check(batch)
            moved = to_device(batch, device, channels_last=channels_last)
            with autocast():
                prediction = task.predict(model, moved)
            metric.update(prediction, moved["target"])
    if world_size() > 1:
        metric.merge(gather(metric.state()))
    return metric.compute()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and each part back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
