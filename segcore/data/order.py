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


@dataclass(frozen=True)
class ShuffledPlan:
    """Every epoch a new permutation, cut into global batches; the incomplete last one is dropped.

    A split with fewer rows than a batch makes one batch in which rows repeat.

    Args:
        size: rows of the split.
        batch_size: rows of a batch over all ranks; a multiple of `world_size`.
        seed: at least 0.
        rank: in 0..world_size-1.
        world_size: number of ranks.
    """

    size: int
    batch_size: int
    seed: int
    rank: int
    world_size: int

    @property
    def steps(self) -> int:
        return max(1, self.size // self.batch_size)

    def epoch(self, number: int) -> Callable[[int], Rows]:
        order = permutation(self.size, self.seed, number)
        if self.size < self.batch_size:
            order = np.resize(order, self.batch_size)
        local = self.batch_size // self.world_size

        def rows(step: int) -> Rows:
            start = step * self.batch_size + self.rank * local
            return order[start : start + local]

        return rows


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
