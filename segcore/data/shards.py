"""Read and verify shards: random access by row, one row group in memory at a time or a few.

`shard_format` has the schema, `shard_writer` writes.
"""

import hashlib
import json
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.data.codec import Pixels, decode_image, decode_mask
from segcore.data.sample import SPLITS, DatasetInfo
from segcore.data.shard_format import FORMAT, MANIFEST, SCHEMA, PixelCounts, Row, ShardMeta
from segcore.data.shard_writer import write_shards
from segcore.errors import DataError, unknown_name

__all__ = [
    "SCHEMA",
    "PixelCounts",
    "Row",
    "ShardMeta",
    "ShardSplit",
    "ShardedDataset",
    "open_shards",
    "verify_shards",
    "write_shards",
]

CACHED_GROUPS = 8


class ShardedDataset:
    """A dataset as `prepare` wrote it. Cheap to open and to pickle; no file stays open.

    Args:
        path: folder with `manifest.json`.
        manifest: its bytes.
    """

    def __init__(self, path: Path, manifest: bytes) -> None:
        self.path = path
        self.digest = hashlib.sha256(manifest).hexdigest()
        try:
            content = json.loads(manifest)
            if content["format"] != FORMAT:
                raise DataError(
                    f"{path / MANIFEST} has format {content['format']}, this version reads "
                    f"{FORMAT}: run the prepare stage again"
                )
            self.meta = ShardMeta.from_json(content["dataset"])
            self.splits: dict[str, int] = dict(content["splits"])
            self.files: list[dict[str, Any]] = list(content["files"])
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{path / MANIFEST} is no manifest ({error}): run the prepare stage again"
            ) from error

    @property
    def info(self) -> DatasetInfo:
        return self.meta.info

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.info.classes

    @property
    def num_classes(self) -> int:
        return self.info.num_classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        return self.info.palette

    @property
    def ignore_index(self) -> int:
        return self.info.ignore_index

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.info.tasks

    @property
    def task(self) -> str:
        """The first of `tasks`."""
        return self.info.tasks[0]

    @property
    def in_channels(self) -> int:
        return self.meta.in_channels

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of every image; None: they differ or are as their sources."""
        return self.meta.size

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, of the training images, in 0..1."""
        return self.meta.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, of the training images, in 0..1."""
        return self.meta.std

    @property
    def pixel_counts(self) -> PixelCounts:
        return self.meta.pixel_counts

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Facts of the training split from which a training is planned (fingerprint.py)."""
        return self.meta.fingerprint

    def split(self, name: str) -> "ShardSplit":
        """The rows of one split; empty if the dataset has none of them.

        Raises:
            UnknownNameError: no such split.
        """
        if name not in SPLITS:
            raise unknown_name("split", name, SPLITS)
        files = [file for file in self.files if file["path"].startswith(f"{name}/")]
        return ShardSplit(self.path, files, self.in_channels)


class ShardSplit:
    """Random access to the rows of one split, with the last few row groups kept in memory.

    It can be pickled and survives a fork: each process opens the files itself. Several threads
    may read at once.
    """

    def __init__(self, path: Path, files: Sequence[Mapping[str, Any]], channels: int) -> None:
        self._paths = [path / file["path"] for file in files]
        self._starts = [0, *accumulate(int(file["rows"]) for file in files)]
        self._channels = channels
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._open: dict[int, tuple[pq.ParquetFile, list[int]]] = {}
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        private = ("_process", "_lock", "_open", "_groups")
        return {name: value for name, value in self.__dict__.items() if name not in private}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        return self._starts[-1]

    @cached_property
    def ids(self) -> list[str]:
        """Sample ids in row order."""
        return [str(i) for i in self._column("id")]

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) in row order."""
        return list(zip(self._column("height"), self._column("width"), strict=True))

    def read(self, index: int) -> Row:
        """One row as it is stored.

        Raises:
            IndexError: index is not in 0..len-1.
            DataError: the file is corrupt or missing.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        part = bisect_right(self._starts, index) - 1
        table, offset = self._group(part, index - self._starts[part])
        return Row.from_record(table.slice(offset, 1).to_pylist()[0])

    def decode(self, index: int) -> tuple[Pixels, Pixels | None]:
        """Image uint8 [H, W, C] and class indices uint8 [H, W] (None if unlabelled) of one row.

        Raises:
            IndexError: index is not in 0..len-1.
            DataError: the file or one of its images is corrupt.
        """
        row = self.read(index)
        try:
            image = decode_image(row.image, self._channels)
            mask = None if row.mask is None else decode_mask(row.mask)
        except DataError as error:
            raise DataError(f"sample {row.id} of {self._paths[0].parent}: {error}") from error
        return image, mask

    def _column(self, name: str) -> list[Any]:
        values: list[Any] = []
        for part in range(len(self._paths)):
            file, _ = self._file(part)
            with _named(self._paths[part]):
                values += file.read(columns=[name], use_threads=False).column(name).to_pylist()
        return values

    def _file(self, part: int) -> tuple[pq.ParquetFile, list[int]]:
        if self._process != os.getpid():
            self._forget()
        if part not in self._open:
            path = self._paths[part]
            with _named(path):
                file = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
            groups = range(file.metadata.num_row_groups)
            starts = [0, *accumulate(file.metadata.row_group(g).num_rows for g in groups)]
            expected = self._starts[part + 1] - self._starts[part]
            if starts[-1] != expected:
                raise _corrupt(path, f"{starts[-1]} rows, the manifest has {expected}")
            self._open[part] = (file, starts)
        return self._open[part]

    def _group(self, part: int, row: int) -> tuple[pa.Table, int]:
        if self._process != os.getpid():
            self._forget()
        with self._lock:
            file, starts = self._file(part)
            group = bisect_right(starts, row) - 1
            key = (part, group)
            if key not in self._groups:
                with _named(self._paths[part]):
                    self._groups[key] = file.read_row_group(group, use_threads=False)
            self._groups.move_to_end(key)
            while len(self._groups) > CACHED_GROUPS:
                self._groups.popitem(last=False)
            return self._groups[key], row - starts[group]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises on a bad file into a DataError with its name."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise _corrupt(path, str(error).splitlines()[0]) from error


def _corrupt(path: Path, why: str) -> DataError:
    return DataError(f"corrupt shard {path}: {why}. Run the prepare stage again")


def open_shards(path: str | Path) -> ShardedDataset:
    """Open a dataset's shards; checks that every file of the manifest is there at its size.

    Raises:
        DataError: no manifest, or a file is missing or has another size.
    """
    path = Path(path)
    try:
        manifest = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise DataError(
            f"no shards in {path} ({MANIFEST} is missing): run the prepare stage"
        ) from error
    dataset = ShardedDataset(path, manifest)
    for file in dataset.files:
        shard = path / file["path"]
        if not shard.is_file():
            raise _corrupt(shard, "the file is missing")
        if shard.stat().st_size != file["bytes"]:
            raise _corrupt(shard, f"{shard.stat().st_size} bytes, expected {file['bytes']}")
    return dataset


def verify_shards(path: str | Path) -> ShardedDataset:
    """`open_shards`, and compare the sha256 of every file with the manifest.

    Raises:
        DataError: a file is missing or its content differs.
    """
    dataset = open_shards(path)
    for file in dataset.files:
        shard = dataset.path / file["path"]
        with shard.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != file["sha256"]:
            raise _corrupt(shard, f"sha256 {digest}, expected {file['sha256']}")
    return dataset
