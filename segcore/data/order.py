"""Which rows make up each batch: a pure function of seed, epoch and step.

One epoch of training is a permutation of the split, cut into global batches; each rank takes its
contiguous part of every batch, so that any number of workers sees the same batches. Validation
hands each rank its share of the rows, every row exactly once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from segcore.data.rows import Rows
from segcore.errors import OptionError

ORDER_STREAM = 0


class Plan(Protocol):
    """Which rows make up each batch of this rank."""

    @property
    def steps(self) -> int:
        """Batches in an epoch."""

    def epoch(self, number: int) -> Callable[[int], Rows]:
        """Map from step to rows, for one epoch."""

    def place(self, step: int) -> int:
        """Number in its epoch, over all ranks, of the first row of this rank's batch."""


@dataclass(frozen=True)
class ShuffledPlan:
    """Every epoch a new permutation, cut into global batches; the incomplete last one is dropped.

    A split with fewer rows than a batch makes one batch in which rows repeat. Epochs of a given
    number of steps go on in the stream of permutations where the one before ended.

    Args:
        size: rows of the split.
        batch_size: rows of a batch over all ranks; a multiple of `world_size`.
        seed: at least 0.
        rank: in 0..world_size-1.
        world_size: number of ranks.
        epoch_steps: batches of an epoch; None for one pass over the rows.
    """

    size: int
    batch_size: int
    seed: int
    rank: int
    world_size: int
    epoch_steps: int | None = None

    @property
    def steps(self) -> int:
        return self.epoch_steps or max(1, self.size // self.batch_size)

    def epoch(self, number: int) -> Callable[[int], Rows]:
        order = self._stream(number) if self.epoch_steps else permutation(*self._key(number))
        if len(order) < self.batch_size:
            order = np.resize(order, self.batch_size)
        local = self.batch_size // self.world_size

        def rows(step: int) -> Rows:
            start = self.place(step)
            return order[start : start + local]

        return rows

    def place(self, step: int) -> int:
        return step * self.batch_size + self.rank * (self.batch_size // self.world_size)

    def _key(self, number: int) -> tuple[int, int, int]:
        return self.size, self.seed, number

    def _stream(self, number: int) -> Rows:
        """Rows of an epoch of `epoch_steps`, cut from permutation after permutation."""
        length = self.steps * self.batch_size
        first, start = divmod(number * length, self.size)
        last = (number * length + length - 1) // self.size
        passes = [permutation(*self._key(k)) for k in range(first, last + 1)]
        return np.concatenate(passes)[start : start + length]


@dataclass(frozen=True)
class OrderedPlan:
    """The rows of this rank in order, the same in every epoch; sizes are never mixed in a batch.

    Args:
        batches: rows of each batch.
    """

    batches: tuple[Rows, ...]

    @property
    def steps(self) -> int:
        return len(self.batches)

    def epoch(self, number: int) -> Callable[[int], Rows]:
        return self.batches.__getitem__

    def place(self, step: int) -> int:
        return sum(len(batch) for batch in self.batches[:step])


def permutation(size: int, seed: int, epoch: int) -> Rows:
    """Shuffle 0..size-1 by (seed, epoch), alike on every machine and version of numpy."""
    bits = np.random.Philox(np.random.SeedSequence([ORDER_STREAM, seed, epoch]))
    return np.argsort(bits.random_raw(size), kind="stable")


def ordered_plan(
    sizes: Sequence[tuple[int, int]], batch_size: int, rank: int, world_size: int
) -> OrderedPlan:
    """Group the rows rank, rank + world_size, ... by size, then cut each group into batches."""
    groups: dict[tuple[int, int], list[int]] = {}
    for row in range(rank, len(sizes), world_size):
        groups.setdefault((int(sizes[row][0]), int(sizes[row][1])), []).append(row)
    batches = [
        np.array(rows[start : start + batch_size], dtype=np.int64)
        for rows in groups.values()
        for start in range(0, len(rows), batch_size)
    ]
    return OrderedPlan(tuple(batches))


def check_counts(batch_size: int, *, seed: int, workers: int, rank: int, world_size: int) -> None:
    """Refuse counts from which no plan can be made.

    Args:
        batch_size: images of a batch over all ranks.
        seed: of the order.
        workers: threads of a loader.
        rank: of this process.
        world_size: number of processes.

    Raises:
        OptionError: one is out of range, or the batch cannot be shared out evenly.
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("workers", workers, 0),
        ("world_size", world_size, 1),
        ("rank", rank, 0),
    ):
        if value < least:
            raise OptionError(f"{name} is {value}; it must be at least {least}")
    if rank >= world_size:
        raise OptionError(f"rank is {rank}; with world_size {world_size} it is below that")
    if batch_size % world_size:
        raise OptionError(
            f"batch_size {batch_size} cannot be shared out evenly among {world_size} workers: "
            f"take {-(-batch_size // world_size) * world_size}, or other workers"
        )
