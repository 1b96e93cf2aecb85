"""Several streams of images in one batch: labelled, weakly labelled, unlabelled.

Each stream is a loader of its own, in an order that is a pure function of (seed, epoch, step), so
the batch of all of them is one as well: it is sought, resumed and shared out among ranks alike.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any, Protocol

import numpy as np

from segcore.data.cache import open_rows
from segcore.data.chosen import ChosenRows
from segcore.data.image_labels import ImageLabels, StrongView
from segcore.data.loader import (
    Batch,
    Dataset,
    Loader,
    check_training,
    create_loaders,
    decoding_threads,
)
from segcore.data.order import ShuffledPlan, check_counts
from segcore.data.rows import Layout, Split
from segcore.data.shard_format import ROW_GROUP
from segcore.data.transforms import Augmentation
from segcore.errors import DataError, OptionError

SEED_STREAM = 3
LABELLED, WEAK, UNLABELLED = "labelled", "weak", "unlabelled"
STREAMS = (LABELLED, WEAK, UNLABELLED)
SOURCE = "unlabelled"
_MISSING = {
    WEAK: "has no image of which the classes alone are known",
    UNLABELLED: "has no image without a mask",
}


class ClassedSplit(Split, Protocol):
    """A split that says which classes its images have."""

    @property
    def labels(self) -> Sequence[Sequence[int] | None]:
        """Image-level classes of each row; None where they are not known."""


class Streams:
    """Batches {"<stream>": batch of its loader}, a step of each at a time.

    Args:
        loaders: by name of the stream, all of as many steps.

    Raises:
        OptionError: their numbers of steps differ.
    """

    def __init__(self, loaders: Mapping[str, Loader]) -> None:
        self.loaders = dict(loaders)
        steps = {name: len(loader) for name, loader in self.loaders.items()}
        if len(set(steps.values())) != 1:
            raise OptionError(
                f"streams have {steps} steps an epoch: give them the same epoch_steps"
            )

    def __len__(self) -> int:
        return len(next(iter(self.loaders.values())))

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Batches of one epoch from step `start` on; what comes before is not read.

        Raises:
            OptionError: `start` is not in 0..len(self).
        """
        return self._merged(
            {name: loader.epoch(number, start) for name, loader in self.loaders.items()}
        )

    @staticmethod
    def _merged(parts: Mapping[str, Any]) -> Iterator[Batch]:
        with ExitStack() as stack:
            for part in parts.values():
                if hasattr(part, "close"):  # a generator that threads work for
                    stack.enter_context(closing(part))
            for batches in zip(*parts.values(), strict=True):
                yield dict(zip(parts, batches, strict=True))


def create_streams(
    dataset: Dataset,
    *,
    streams: Sequence[str],
    batch_size: int,
    seed: int,
    strong: StrongView | None = None,
    unlabelled_batch_size: int | None = None,
    epoch_steps: int | None = None,
    **options: Any,
) -> tuple[Streams, Loader]:
    """Streams for training, and the loader of val.

    "labelled" has the split train as `create_loaders` makes it, "unlabelled" the split of that
    name, "weak" those of its images of which the classes are known. An epoch without `epoch_steps`
    is one pass over the longest stream; shorter ones begin again as often as it takes.

    Args:
        dataset: opened shards.
        streams: names, "labelled" among them.
        batch_size: labelled images of a batch over all ranks.
        seed: of order and augmentation; the labelled images come as without other streams.
        strong: second view of the images without masks.
        unlabelled_batch_size: images of each other stream in a batch; `batch_size` if None.
        epoch_steps: batches of an epoch.
        options: further ones of `create_loaders`.

    Raises:
        OptionError: a count or option is out of range.
        DataError: a stream has no images, or they differ in size and are not cropped.
    """
    unknown = sorted(set(streams) - set(STREAMS))
    if unknown or LABELLED not in streams:
        raise OptionError(f"streams are {list(streams)}: take labelled and any of {STREAMS[1:]}")
    other_size = batch_size if unlabelled_batch_size is None else unlabelled_batch_size
    others = {name: _rows_of(dataset, name) for name in streams if name != LABELLED}
    if epoch_steps is None:
        lengths = [len(dataset.split("train")) // batch_size]
        lengths += [len(split) // max(1, other_size) for split in others.values()]
        epoch_steps = max(1, *lengths)
    labelled, val = create_loaders(
        dataset, batch_size=batch_size, seed=seed, epoch_steps=epoch_steps, **options
    )
    cropped = (options.get("augment") or {}).get("crop") is not None
    loaders = {LABELLED: labelled}
    for name, split in others.items():
        check_training(split, other_size, cropped=cropped)
        _check_one_size(split, labelled, cropped=cropped)
        loaders[name] = _stream(
            dataset, name, split, batch_size=other_size, steps=epoch_steps,
            seed=stream_seed(seed, name), strong=strong, **options,
        )  # fmt: skip
    return Streams({name: loaders[name] for name in streams}), val


def stream_seed(seed: int, name: str) -> int:
    """Seed of a stream: the labelled one has the run's own, the others draw by themselves."""
    if name == LABELLED:
        return seed
    sequence = np.random.SeedSequence([SEED_STREAM, seed, STREAMS.index(name)])
    return int(sequence.generate_state(1)[0])


def _rows_of(dataset: Dataset, name: str) -> Split:
    split: Any = dataset.split(SOURCE)
    rows: Split = split
    if name == WEAK:
        known = [row for row, labels in enumerate(split.labels) if labels is not None]
        rows = split if len(known) == len(split) else ChosenRows(split, known)
    if len(rows) == 0:
        raise DataError(
            f"{dataset.name} {_MISSING[name]}: put such images into its split 'unlabelled', or "
            "hide masks of the training images by data.labelled_fraction"
        )
    return rows


def _check_one_size(split: Split, labelled: Loader, *, cropped: bool) -> None:
    """Streams go through the model together, so their images are of one size."""
    sizes = set(split.sizes) | set(labelled.rows.split.sizes)
    if len(sizes) > 1 and not cropped:
        raise DataError(
            f"images with and without masks have {len(sizes)} sizes, from {min(sizes)} to "
            f"{max(sizes)} (height, width), and go through the model together: set "
            "train.augment.crop to a common crop, or data.size to store all images at one size"
        )


def _stream(
    dataset: Dataset,
    name: str,
    split: Split,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    strong: StrongView | None,
    augment: Mapping[str, Any] | None = None,
    cache: str = "ram",
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    **options: Any,
) -> Loader:
    """The loader of images without masks; arguments as `create_loaders`."""
    check_counts(batch_size, seed=seed, workers=workers, rank=rank, world_size=world_size)
    targets = ImageLabels(dataset.num_classes, strong=strong)
    rows = open_rows(
        split,
        Layout(split.sizes, channels=dataset.in_channels, maps=False),
        cache=cache,
        targets=targets,
        cache_dir=options.get("cache_dir"),
        name=f"{dataset.name}-{name}",
        digest=f"{dataset.digest} {name} {len(split)}",
        threads=decoding_threads(workers, world_size, kept=cache != "none"),
        block=ROW_GROUP if world_size == 1 else 1,
    )
    plan = ShuffledPlan(len(split), batch_size, seed, rank, world_size, epoch_steps=steps)
    # Crops by class need to know where classes are.
    augmentation = Augmentation.from_options(
        {**(augment or {}), "class_crops": 0.0},
        ignore_index=dataset.ignore_index,
        mean=dataset.mean,
    )
    return Loader(
        rows, plan, ids=split.ids, targets=targets, augmentation=augmentation, seed=seed,
        workers=workers,
    )  # fmt: skip
