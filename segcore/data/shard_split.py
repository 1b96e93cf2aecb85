"""Random access to the rows of a split, one row group in memory at a time or a few."""

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
from segcore.data.place import Place, away
from segcore.data.shard_format import Row
from segcore.errors import DataError

CACHED_BYTES = 256 * 2**20  # of row groups as they are stored; one is kept whatever its size


class ShardSplit:
    """Random access to the rows of one split, with the last row groups kept in memory.

    It can be pickled and survives a fork: each process opens the files itself. Several threads
    may read at once.
    """

    def __init__(
        self, path: Path | Place, files: Sequence[Mapping[str, Any]], channels: int
    ) -> None:
        self._place = path if isinstance(path, Place) else Place(path)
        self._names = [str(file["path"]) for file in files]
        self._starts = [0, *accumulate(int(file["rows"]) for file in files)]
        self._channels = channels
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._open: dict[int, tuple[pq.ParquetFile, list[int]]] = {}
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        private = ("_process", "_lock", "_open", "_groups", "_bytes")
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

    @cached_property
    def labels(self) -> list[list[int] | None]:
        """Image-level classes in row order; None where an image has none."""
        return self._column("labels")

    def read(self, index: int) -> Row:
        """One row as it is stored.

        Raises:
            IndexError: index is not in 0..len-1.
            DataError: the file is corrupt or missing.
        """
        table, offset = self._row(index)
        with named(self._place):
            return Row.from_record(table.slice(offset, 1).to_pylist()[0])

    def decode(self, index: int) -> tuple[Pixels, Pixels | None]:
        """Image uint8 [H, W, C] and class indices uint8 [H, W] (None if unlabelled) of one row.

        Raises:
            IndexError: index is not in 0..len-1.
            DataError: the file or one of its images is corrupt.
        """
        table, offset = self._row(index)
        with named(self._place):
            encoded, label = (table.column(name)[offset].as_py() for name in ("image", "mask"))
            data = bytes(encoded["bytes"])
        try:
            image = decode_image(data, self._channels)
            mask = decode_mask(label["bytes"]) if label and label["bytes"] is not None else None
        except DataError as error:
            name = table.column("id")[offset].as_py()
            split = self._place / self._names[0].partition("/")[0]
            raise DataError(f"sample {name} of {split}: {error}") from error
        return image, mask

    def _row(self, index: int) -> tuple[pa.Table, int]:
        """The row group that holds a row, and its place there."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        part = bisect_right(self._starts, index) - 1
        return self._group(part, index - self._starts[part])

    def _column(self, name: str) -> list[Any]:
        values: list[Any] = []
        for part in range(len(self._names)):
            file, _ = self._file(part)
            with named(self._place / self._names[part]):
                values += file.read(columns=[name], use_threads=False).column(name).to_pylist()
        return values

    def _file(self, part: int) -> tuple[pq.ParquetFile, list[int]]:
        if self._process != os.getpid():
            self._forget()
        if part not in self._open:
            path = self._place / self._names[part]
            with named(path):
                file = self._place.parquet(self._names[part])
            groups = range(file.metadata.num_row_groups)
            starts = [0, *accumulate(file.metadata.row_group(g).num_rows for g in groups)]
            expected = self._starts[part + 1] - self._starts[part]
            if starts[-1] != expected:
                raise corrupt(path, f"{starts[-1]} rows, the manifest has {expected}")
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
                with named(self._place / self._names[part]):
                    self._groups[key] = file.read_row_group(group, use_threads=False)
                self._bytes += self._groups[key].nbytes
            self._groups.move_to_end(key)
            while self._bytes > CACHED_BYTES and len(self._groups) > 1:
                self._bytes -= self._groups.popitem(last=False)[1].nbytes
            return self._groups[key], row - starts[group]


@contextmanager
def named(path: Path | Place) -> Iterator[None]:
    """Turn what pyarrow raises on a bad file into a DataError with its name."""
    try:
        yield
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        if "AWS Error" in str(error) and not isinstance(error, FileNotFoundError):
            raise away(str(path), error) from error
        raise corrupt(path, (str(error).splitlines() or [""])[0]) from error


def corrupt(path: Path | Place, why: str) -> DataError:
    """What to raise on a file that is not what the manifest says."""
    return DataError(
        f"corrupt shard {path}: {why}. Run the prepare stage again (dvc repro --force prepare)"
    )
