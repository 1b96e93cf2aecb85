"""From a dataset's samples to its shards: validate everything, then encode and write."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from segcore.data.atomic import new_folder
from segcore.data.class_points import CLASS_POINTS, encode_points
from segcore.data.codec import ENCODINGS
from segcore.data.encode import Encoding
from segcore.data.inspection import Fault, Inspection, inspect_sample
from segcore.data.place import Place
from segcore.data.pool import SAMPLES_PER_WORKER, count_workers, worker_pool
from segcore.data.sample import SPLITS, DatasetInfo, Sample
from segcore.data.shard_writer import write_shards
from segcore.data.statistics import measure
from segcore.data.validate import cross_check
from segcore.datasets.base import Dataset, Progress, silent
from segcore.errors import DataError, OptionError

REJECTED = "rejected.csv"
COPIED_PER_WORKER = 2048
COLUMNS = ("file", "split", "fault", "value", "fix", "severity")

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Validation:
    """What a dataset holds and what is wrong with it.

    Args:
        info: of the dataset.
        samples: those without an error, in the dataset's order.
        found: what each of them holds.
        faults: errors and warnings.
        rejected: number of samples with an error.
        size: (height, width) of the images as they will be stored; None: as they are.
    """

    info: DatasetInfo
    samples: tuple[Sample, ...]
    found: tuple[Inspection, ...]
    faults: tuple[Fault, ...]
    rejected: int
    size: tuple[int, int] | None = None

    def check(self, max_rejected: int = 0) -> None:
        """Raise if too much is wrong to go on.

        Raises:
            DataError: more than `max_rejected` samples have an error, or no training sample is
                left.
        """
        if self.rejected > max_rejected:
            first = next(fault for fault in self.faults if fault.severity == "error")
            raise DataError(
                f"{self.rejected} samples of {self.info.name} are rejected, max_rejected is "
                f"{max_rejected}. First: {first.file}: {first.fault} ({first.value}); "
                f"{first.fix}. All of them: {REJECTED}"
            )
        if not any(sample.split == "train" for sample in self.samples):
            raise DataError(
                f"{self.info.name} has no training sample: put images into its train split"
            )

    def csv(self) -> bytes:
        """The faults as a table; only a header if there are none."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for fault in self.faults:
            writer.writerow([getattr(fault, column) for column in COLUMNS])
        return text.getvalue().encode()


def prepare(
    dataset: Dataset,
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    image_encoding: str = "keep",
    rows_per_shard: int = 256,
    max_rejected: int = 0,
    workers: int | None = None,
    progress: Progress = silent,
) -> Validation:
    """Validate a downloaded dataset and write its shards to `path`, with `rejected.csv`.

    Args:
        dataset: where samples come from.
        path: folder of the shards; replaced as a whole.
        size: (height, width) to bring images (bilinear, antialiased) and masks (nearest) to;
            None keeps the source's.
        image_encoding: "keep" the source's bytes, or "png", "jpeg", "raw" (.npy). Images of more
            than 8 bits are brought to 8 and never kept.
        rows_per_shard: rows of one file.
        max_rejected: bad samples that are left out; more of them fail.
        workers: processes; None: as many as are worth it.
        progress: told how far it is.

    Raises:
        OptionError: image_encoding is not known or rows_per_shard not positive.
        DataError: too many faults (then only `rejected.csv` is there), or the disk is full.
    """
    check_encoding(image_encoding)
    validation = validate(dataset, size=size, workers=workers, progress=progress)
    try:
        validation.check(max_rejected)
    except DataError:
        write_rejected(validation, path)
        raise
    write(
        validation, path, image_encoding=image_encoding, rows_per_shard=rows_per_shard,
        workers=workers, progress=progress,
    )  # fmt: skip
    return validation


def check_encoding(image_encoding: str) -> None:
    """Refuse an unknown encoding.

    Raises:
        OptionError: naming the known ones.
    """
    if image_encoding not in ENCODINGS:
        raise OptionError(
            f"image_encoding is {image_encoding!r}: use one of {', '.join(ENCODINGS)}"
        )


def validate(
    dataset: Dataset,
    *,
    size: tuple[int, int] | None = None,
    workers: int | None = None,
    progress: Progress = silent,
) -> Validation:
    """Read every sample and collect all faults; writes nothing.

    Args:
        dataset: downloaded.
        size: (height, width) to which images will be brought.
        workers: processes; None: as many as are worth it.
        progress: told how many samples are read.

    Raises:
        DataError: the dataset cannot be read at all.
    """
    info, samples = dataset.info(), list(dataset.samples())
    found: list[Inspection] = []
    inspect = partial(inspect_sample, info=info, size=size)
    with worker_pool(count_workers(len(samples), workers), (inspect, samples[:1])) as pool:
        for inspection in _ordered(pool, inspect, samples):
            found.append(inspection)
            progress("validate", len(found), len(samples))
    return _judge(info, samples, found, size)


def _judge(
    info: DatasetInfo,
    samples: Sequence[Sample],
    found: Sequence[Inspection],
    size: tuple[int, int] | None,
) -> Validation:
    """Separate the samples without an error from the rest."""
    checked = cross_check(samples, found, info)
    faults: list[Fault] = []
    good = []
    for row, inspection in enumerate(found):
        further = checked.rejected.get(row, [])
        faults += [*inspection.faults, *further]
        if not (inspection.failed or further):
            good.append(row)
    return Validation(
        info=info,
        samples=tuple(samples[row] for row in good),
        found=tuple(found[row] for row in good),
        faults=(*faults, *checked.faults),
        rejected=len(samples) - len(good),
        size=size,
    )


def _ordered(
    pool: Executor | None, call: Callable[[In], Out], items: Sequence[In]
) -> Iterator[Out]:
    if pool is None:
        return map(call, items)
    return pool.map(call, items, chunksize=8)


def write(
    validation: Validation,
    path: str | Path,
    *,
    image_encoding: str = "keep",
    rows_per_shard: int = 256,
    workers: int | None = None,
    progress: Progress = silent,
    origin: Mapping[str, str] | None = None,
    root: Place | None = None,
) -> None:
    """Write the samples without faults as shards, and `rejected.csv` beside them.

    Args:
        validation: of the dataset; the others as in `prepare`.
        origin: of the raw files (`datasets.origin.read_origin`), kept with the shards.
        root: where the shards go instead, under their digest; `path` then says where.

    Raises:
        OptionError: image_encoding is not known or rows_per_shard not positive.
        DataError: the disk is full or the place not writable; nothing is left behind.
    """
    check_encoding(image_encoding)
    samples, found, info = validation.samples, validation.found, validation.info
    meta = measure(samples, found, info, size=validation.size, image_encoding=image_encoding)
    meta = replace(meta, origin=dict(origin or {}))
    encoding = Encoding(info, validation.size, image_encoding, meta.in_channels)
    pairs = list(zip(samples, found, strict=True))
    splits = {split: [pair for pair in pairs if pair[0].split == split] for split in SPLITS}
    shapes = (inspection.shapes for _, inspection in splits["train"])
    written = 0

    def done(rows: int) -> None:
        nonlocal written
        written += rows
        progress("write", written, len(samples))

    copied = image_encoding == "keep" and validation.size is None
    per_worker = COPIED_PER_WORKER if copied else SAMPLES_PER_WORKER
    processes = count_workers(len(samples), workers, per_worker=per_worker)
    with worker_pool(processes, (encoding, samples[:1])) as pool:
        write_shards(
            Path(path), meta, splits=splits, encode=encoding.row, rows_per_shard=rows_per_shard,
            pool=pool, done=done, indices={CLASS_POINTS: encode_points(shapes)},
            extra={REJECTED: validation.csv()}, root=root,
        )  # fmt: skip


def write_rejected(validation: Validation, path: str | Path) -> None:
    """Put a folder that holds `rejected.csv` alone in place of the shards at `path`.

    Raises:
        DataError: the disk is full or the place not writable.
    """
    with new_folder(Path(path)) as folder:
        (folder / REJECTED).write_bytes(validation.csv())
