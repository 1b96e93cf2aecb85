"""Batches of decoded images in an order that depends on seed, epoch and step alone.

One epoch of training is a permutation of the split, cut into global batches; each rank takes its
contiguous part of every batch, so that any number of workers sees the same batches. Validation
hands each rank its share of the rows, every row exactly once.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from segcore.data.by_class import ByClass, create_by_class
from segcore.data.cache import open_rows
from segcore.data.class_points import ClassPoints
from segcore.data.joined import JoinedSplit
from segcore.data.order import Plan, ShuffledPlan, check_counts, ordered_plan
from segcore.data.rows import (
    CLASS_MAPS,
    CachedRows,
    DecodedRows,
    Layout,
    Rows,
    Split,
)
from segcore.data.shard_format import ROW_GROUP, PixelCounts
from segcore.data.targets import Targets
from segcore.data.transforms import Augmentation
from segcore.errors import DataError, OptionError

Batch = dict[str, Any]

PIXEL_STREAM = 1


class Dataset(Protocol):
    """What a loader needs of a dataset (`segcore.data.shards.ShardedDataset`)."""

    @property
    def name(self) -> str: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def ignore_index(self) -> int: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def digest(self) -> str: ...
    @property
    def pixel_counts(self) -> PixelCounts: ...
    def split(self, name: str) -> Split: ...
    def class_points(self) -> ClassPoints: ...


class Loader:
    """Batches of one rank: "image" and "target" as `targets` makes them, "id": list of names.

    For class maps `{"image": uint8 [N, C, H, W], "target": int64 [N, H, W], "id": list}`.

    Args:
        rows: the decoded images.
        plan: which rows make up which batch.
        ids: name of each row.
        targets: what labels are, and what a batch is made of.
        augmentation: what is done to each image and its label; None for nothing.
        by_class: draws the share of the samples that is drawn by class; None for none.
        seed: of the augmentation.
        workers: threads that prepare batches ahead; 0 prepares each when it is asked for.
    """

    def __init__(
        self,
        rows: DecodedRows | CachedRows,
        plan: Plan,
        *,
        ids: Sequence[str],
        targets: Targets = CLASS_MAPS,
        augmentation: Augmentation | None = None,
        by_class: ByClass | None = None,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        self.rows = rows
        self.plan = plan
        self.ids = ids
        self.targets = targets
        self.augmentation = augmentation
        self.by_class = by_class
        self.seed = seed
        self.workers = workers

    def __len__(self) -> int:
        return self.plan.steps

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Batches of one epoch from step `start` on; what comes before is not read.

        Raises:
            OptionError: `start` is not in 0..len(self).
        """
        if not 0 <= start <= len(self):
            raise OptionError(
                f"epoch {number} cannot start at step {start}: it has {len(self)} steps; "
                "the checkpoint belongs to another dataset or batch size"
            )
        rows = self.plan.epoch(number)
        steps = range(start, len(self))
        if self.workers == 0:
            return (self._batch(rows(step), number, step) for step in steps)
        return self._ahead(rows, number, steps)

    def _ahead(self, rows: Callable[[int], Rows], number: int, steps: range) -> Iterator[Batch]:
        """Prepare up to workers + 1 batches in threads while earlier ones are used."""
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="segcore-loader")
        pending: deque[Future[Batch]] = deque()
        try:
            for step in steps:
                pending.append(pool.submit(self._batch, rows(step), number, step))
                if len(pending) > self.workers + 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _batch(self, rows: Rows, epoch: int, step: int) -> Batch:
        if self.augmentation is None:
            batch = self.targets.gather(self.rows, rows)
        else:
            rows, batch = self._augmented(self.augmentation, rows, epoch, step)
        return {**batch, "id": [self.ids[int(row)] for row in rows]}

    def _augmented(
        self, augmentation: Augmentation, rows: Rows, epoch: int, step: int
    ) -> tuple[Rows, Batch]:
        """Samples changed by draws that depend on seed, epoch and place in the epoch alone."""
        first = self.plan.place(step)
        draws = [
            np.random.default_rng(np.random.SeedSequence([PIXEL_STREAM, self.seed, epoch, place]))
            for place in range(first, first + len(rows))
        ]
        over: list[tuple[int, int] | None] = [None] * len(rows)
        if self.by_class is not None:
            drawn = [self.by_class(int(row), rng) for row, rng in zip(rows, draws, strict=True)]
            rows, over = np.array([row for row, _ in drawn]), [point for _, point in drawn]
        self.rows.prepare(rows)
        pairs = [
            self.targets.augment(augmentation, *self.rows.read(int(row)), rng=rng, over=point)
            for row, rng, point in zip(rows, draws, over, strict=True)
        ]
        images, targets = zip(*pairs, strict=True)
        return rows, self.targets.collate(images, targets)


def create_loaders(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    targets: Targets = CLASS_MAPS,
    augment: Mapping[str, Any] | None = None,
    cache: str = "ram",
    cache_dir: Path | None = None,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    val_batch_size: int | None = None,
    epoch_steps: int | None = None,
    refit: bool = False,
) -> tuple[Loader, Loader]:
    """Loaders of the splits train (shuffled, augmented) and val (in order, as stored).

    Args:
        dataset: opened shards.
        batch_size: images of a training batch over all ranks; a multiple of `world_size`.
        seed: of order and augmentation; at least 0.
        targets: what labels are; a kind of task says it (`Kind.create_loaders`).
        augment: options of `segcore.data.transforms.Augmentation`; None for none.
        cache: where decoded images are kept, "none", "ram" or "disk".
        cache_dir: folder of the disk cache.
        workers: threads that prepare batches ahead of use.
        rank: this process, in 0..world_size-1.
        world_size: number of processes.
        val_batch_size: images of a validation batch over all ranks; `batch_size` if None.
        epoch_steps: batches of a training epoch; None for one pass over the images.
        refit: train on the images of val as well.

    Raises:
        OptionError: a count or option is out of range.
        DataError: there is nothing to train on, or training images differ in size and are not
            cropped.
    """
    ranks = {"rank": rank, "world_size": world_size}
    check_counts(batch_size, seed=seed, workers=workers, **ranks)
    val_batch_size = batch_size if val_batch_size is None else val_batch_size
    if val_batch_size < 1:
        raise OptionError(f"val_batch_size is {val_batch_size}; it must be at least 1")
    augmentation = Augmentation.from_options(
        augment or {}, ignore_index=dataset.ignore_index, mean=dataset.mean
    )
    train, val = dataset.split("train"), dataset.split("val")
    if refit:
        train = JoinedSplit([train, val])
    fits = augmentation.crop is not None or targets.any_size
    check_training(train, batch_size, cropped=fits)

    kept = {
        name: open_rows(
            split,
            Layout(split.sizes, channels=dataset.in_channels, maps=targets.maps),
            cache=cache,
            targets=targets,
            cache_dir=cache_dir,
            name=f"{dataset.name}-{name}",
            digest=f"{dataset.digest} {name} {len(split)}",
            threads=decoding_threads(workers, world_size, kept=cache != "none"),
            block=ROW_GROUP if world_size == 1 else 1,
        )
        for name, split in (("train", train), ("val", val))
    }
    shuffled = ShuffledPlan(len(train), batch_size, seed, **ranks, epoch_steps=epoch_steps)
    ordered = ordered_plan(val.sizes, -(-val_batch_size // world_size), **ranks)
    return (
        Loader(
            kept["train"],
            shuffled,
            ids=train.ids,
            targets=targets,
            augmentation=augmentation if augmentation.enabled else None,
            by_class=create_by_class(dataset, augmentation.class_crops),
            seed=seed,
            workers=workers,
        ),
        Loader(kept["val"], ordered, ids=val.ids, targets=targets, workers=workers),
    )


def check_training(split: Split, batch_size: int, *, cropped: bool) -> None:
    """Refuse a training split that makes no batches.

    Raises:
        DataError: it is empty, or its images differ in size and nothing makes them equal.
    """
    if len(split) == 0:
        raise DataError("the split 'train' is empty: there is nothing to train on")
    sizes = sorted(set(split.sizes))
    if len(sizes) > 1 and batch_size > 1 and not cropped:
        raise DataError(
            f"training images have {len(sizes)} sizes, from {sizes[0]} to {sizes[-1]} "
            "(height, width), and a batch needs one: set train.augment.crop to a common crop, "
            "or data.size to store all images at one size"
        )


def decoding_threads(workers: int, world_size: int, *, kept: bool) -> int:
    """Threads that decode the rows of one batch.

    Without workers that is this rank's share of the cores: nothing else of the process runs while
    it waits for a batch. Workers that keep what they decode take turns at it, and each uses as
    many threads as there are workers; where nothing is kept, they decode side by side.
    """
    if workers:
        return workers if kept else 1
    return max(1, (os.cpu_count() or 1) // world_size)


def create_loader(
    split: Split, *, batch_size: int, workers: int = 0, rank: int = 0, world_size: int = 1
) -> Loader:
    """Loader of one split for one pass: in order, as stored, each image once over all ranks.

    Args:
        split: rows to read; all labelled.
        batch_size: images of a batch of this rank at most; images of unlike sizes are never
            put together.
        workers: threads that decode batches ahead of use.
        rank: this process, in 0..world_size-1.
        world_size: number of processes.

    Raises:
        OptionError: a count is out of range.
    """
    check_counts(batch_size * world_size, seed=0, workers=workers, rank=rank, world_size=world_size)
    plan = ordered_plan(split.sizes, batch_size, rank, world_size)
    rows = DecodedRows(split, threads=decoding_threads(workers, world_size, kept=False))
    return Loader(rows, plan, ids=split.ids, workers=workers)
