"""What a metric keeps of each image, as bytes; and a metric that is a list of such records.

A record holds all that a figure of the whole split needs of its image, so that figures can be taken
under any weights of the images: a bootstrap never looks at a mask again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, Self, TypeVar

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from segcore.errors import DataError, OptionError, ShapeError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Record:
    """Base of records: named arrays and nothing else."""

    def to_bytes(self) -> bytes:
        """The arrays in the safetensors layout; no code is run to read them."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        return safetensors.numpy.save(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Restore what `to_bytes` wrote.

        Raises:
            DataError: the bytes are damaged or of another kind of record.
        """
        try:
            arrays = safetensors.numpy.load(data)
        except safetensors.SafetensorError as error:
            raise DataError(
                f"{len(data)} bytes are no {cls.__name__}: {error}; evaluate the image anew"
            ) from error
        names = {field.name for field in fields(cls)}
        if set(arrays) != names:
            raise DataError(
                f"a record holds {sorted(arrays)}, but {cls.__name__} has {sorted(names)}: "
                "evaluate the image anew"
            )
        return cls(**arrays)


R = TypeVar("R", bound=Record)


class RecordMetric(Generic[R]):
    """Base of metrics that keep a record of every image.

    The order of the images is that in which they were added (after `merge`: the workers' one after
    the other). It matters for equal scores alone, of which the earlier image's comes first.

    Args:
        record_type: the class that reads states.
    """

    def __init__(self, record_type: type[R]) -> None:
        self._record_type = record_type
        self.records: list[R] = []

    def match(self, pred: Mapping[str, Any], target: Mapping[str, Any]) -> R:
        """The record of one image."""
        raise NotImplementedError

    def update(
        self, preds: Iterable[Mapping[str, Any]], targets: Iterable[Mapping[str, Any]]
    ) -> None:
        """Add a batch: one prediction and one target an image.

        Raises:
            ShapeError: there are more of the one than of the other.
        """
        preds, targets = list(preds), list(targets)
        if len(preds) != len(targets):
            raise ShapeError(
                f"{len(preds)} predictions for {len(targets)} targets: give one of each an image"
            )
        self.records += [self.match(*pair) for pair in zip(preds, targets, strict=True)]

    def state(self) -> list[bytes]:
        """What `merge` of another worker needs: the records."""
        return [record.to_bytes() for record in self.records]

    def merge(self, states: Sequence[Sequence[bytes]]) -> None:
        """Replace the records by those of all workers, one worker after the other."""
        self.records = [self._record_type.from_bytes(data) for state in states for data in state]

    def reset(self) -> None:
        """Forget everything that was added."""
        self.records = []


def check_weights(weights: Any, count: int) -> Floats:
    """Weights of the images as float64.

    Args:
        count: number of records, B.

    Shape:
        weights: [R, B], at least 0; how often each image counts in each weighting
        returns: [R, B]

    Raises:
        ShapeError: the weights do not belong to the records.
        OptionError: a weight is negative or not finite.
    """
    table = np.asarray(weights, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != count:
        raise ShapeError(
            f"weights are {table.shape} for {count} records: give [R, {count}], "
            "a row for each weighting"
        )
    if not (np.isfinite(table).all() and (table >= 0).all()):
        wrong = table[~(np.isfinite(table) & (table >= 0))][0]
        raise OptionError(f"a weight is {wrong}: give how often each image counts, 0 or more")
    return table


def ratio(part: Any, whole: Any) -> Floats:
    """part / whole; NaN where whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, dtype=np.float64), whole)
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0))


def mean_defined(values: Floats, axis: int | tuple[int, ...] = -1) -> Floats:
    """Mean of what is not NaN; NaN where nothing is left."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis), defined.sum(axis))
