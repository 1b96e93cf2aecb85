"""Batches as the loop sees them: nested containers of tensors, drawn from any loader."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from segcore.errors import DataError, OptionError
from segcore.tasks.base import Batch

EPOCH_STRIDE = 1_000_003


def to_device(value: Any, device: torch.device, *, channels_last: bool = False) -> Any:
    """Copy every tensor of a nest of mappings, lists and tuples to a device.

    Args:
        value: the nest; what is no tensor is kept.
        device: where to.
        channels_last: lay out 4-D tensors that way.
    """
    if isinstance(value, Tensor):
        if channels_last and value.ndim == 4:
            return value.to(device, non_blocking=True, memory_format=torch.channels_last)
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {
            key: to_device(item, device, channels_last=channels_last) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        items = [to_device(item, device, channels_last=channels_last) for item in value]
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return type(value)(items)
    return value


def image_count(batch: Any) -> int:
    """Length of "image"; the sum where a batch nests those of several loaders."""
    if not isinstance(batch, Mapping):
        return 0
    if "image" in batch:
        return len(batch["image"])
    return sum(image_count(part) for part in batch.values())


def batch_count(loader: Any, name: str) -> int:
    """Batches per epoch.

    Raises:
        OptionError: the loader has no length.
    """
    try:
        return len(loader)
    except TypeError as error:
        raise OptionError(
            f"{name} ({type(loader).__name__}) has no length: the schedule needs len(loader), "
            "the number of batches per epoch"
        ) from error


def open_epoch(loader: Any, number: int, *, start: int = 0, seed: int = 0) -> Iterator[Batch]:
    """Batches `start`, `start + 1`, ... of an epoch; leaves torch's CPU generator as it was.

    A loader with `epoch(number, start)` seeks by itself. Any other iterable, such as a torch
    DataLoader, is read from its beginning under a seed of (seed, number), and skipped through.

    Args:
        loader: where batches come from.
        number: epochs done before.
        start: first batch.
        seed: of the run.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed * EPOCH_STRIDE + number)
    try:
        if hasattr(loader, "epoch"):
            batches: Iterator[Batch] = iter(loader.epoch(number, start))
            return itertools.chain(list(itertools.islice(batches, 1)), batches)
        sampler = getattr(loader, "sampler", None)
        set_epoch = getattr(sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(number)
        batches = iter(loader)
        if start == 0:
            return itertools.chain(list(itertools.islice(batches, 1)), batches)
        for _ in itertools.islice(batches, start):
            pass
        return batches
    finally:
        torch.set_rng_state(before)


def take(batches: Iterator[Batch], count: int) -> list[Batch]:
    """The next batches.

    Raises:
        DataError: the loader ended before its length.
    """
    group = list(itertools.islice(batches, count))
    if len(group) < count:
        raise DataError(
            f"the loader ended {count - len(group)} batches before its len(): "
            "make its length and its iterator agree"
        )
    return group
