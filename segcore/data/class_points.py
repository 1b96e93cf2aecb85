"""Where the classes are in the training images: some pixels of each, for crops of rare ones."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segcore.data.shapes import ClassShape

CLASS_POINTS = "class_points.parquet"

_LIST = pa.list_(pa.int32())
_SCHEMA = pa.schema([("row", pa.int32()), ("class", pa.int16()), ("ys", _LIST), ("xs", _LIST)])


@dataclass(frozen=True, eq=False)
class ClassPoints:
    """Up to 32 pixels of each class of each training image, as flat arrays.

    Args:
        row: int32 [entries], row of the train split; ascending.
        klass: int16 [entries], class index; ascending within a row.
        start: int64 [entries + 1]: points of entry e are start[e]..start[e + 1].
        ys, xs: int32 [points], in pixels of the stored image.
    """

    row: NDArray[np.int32]
    klass: NDArray[np.int16]
    start: NDArray[np.int64]
    ys: NDArray[np.int32]
    xs: NDArray[np.int32]

    def rows_of(self, index: int) -> NDArray[np.int32]:
        """Rows of the train split that hold a class."""
        rows: NDArray[np.int32] = self.row[self.klass == index]
        return rows

    def classes_of(self, row: int) -> NDArray[np.int16]:
        """Classes that a row of the train split holds, ascending."""
        first, last = np.searchsorted(self.row, [row, row + 1])
        return self.klass[int(first) : int(last)]

    def points(self, row: int, index: int) -> NDArray[np.int32]:
        """int32 [n, 2] of (y, x): pixels of a class in a row; empty if it has none."""
        first, last = np.searchsorted(self.row, [row, row + 1])
        entry = int(first + np.searchsorted(self.klass[first:last], index))
        if entry == last or self.klass[entry] != index:
            return np.empty((0, 2), dtype=np.int32)
        part = slice(int(self.start[entry]), int(self.start[entry + 1]))
        return np.stack((self.ys[part], self.xs[part]), axis=1)


def encode_points(rows: Iterable[Sequence[ClassShape]]) -> bytes:
    """The Parquet file of the shapes of each training row, in stored order."""
    entries = [(row, shape) for row, shapes in enumerate(rows) for shape in shapes]
    sizes = [0, *(len(shape.points) for _, shape in entries)]
    start = pa.array(np.cumsum(sizes), type=pa.int32())
    points = np.concatenate([np.empty((0, 2), np.int32), *(s.points for _, s in entries)])
    columns = [
        pa.array([row for row, _ in entries], type=pa.int32()),
        pa.array([shape.index for _, shape in entries], type=pa.int16()),
        pa.ListArray.from_arrays(start, pa.array(np.ascontiguousarray(points[:, 0]))),
        pa.ListArray.from_arrays(start, pa.array(np.ascontiguousarray(points[:, 1]))),
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=_SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


def read_points(content: bytes) -> ClassPoints:
    """Inverse of `encode_points`."""
    # Not read_table, which imports pandas.
    return _from_table(pq.ParquetFile(pa.BufferReader(content)).read())


def no_points() -> ClassPoints:
    """Of shards that were written without them."""
    return _from_table(_SCHEMA.empty_table())


def _from_table(table: pa.Table) -> ClassPoints:
    ys, xs = (table.column(name).combine_chunks() for name in ("ys", "xs"))
    return ClassPoints(
        row=table.column("row").to_numpy(),
        klass=table.column("class").to_numpy(),
        start=np.concatenate([[0], np.cumsum(ys.value_lengths().to_numpy())]).astype(np.int64),
        ys=ys.flatten().to_numpy(),
        xs=xs.flatten().to_numpy(),
    )
