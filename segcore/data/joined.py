"""Several splits read as one: training on the validation images too, say."""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from segcore.data.rows import Split
from segcore.data.shard_format import Row


class JoinedSplit:
    """The rows of several splits, one after the other.

    Args:
        parts: in order.
    """

    def __init__(self, parts: Sequence[Split]) -> None:
        self.parts = parts
        self.ids = [name for part in parts for name in part.ids]
        self.sizes = [size for part in parts for size in part.sizes]

    def __len__(self) -> int:
        return len(self.ids)

    def decode(self, index: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
        """As `Split.decode`."""
        part, row = self._locate(index)
        return part.decode(row)

    def read(self, index: int) -> Row:
        """As `Split.read`."""
        part, row = self._locate(index)
        return part.read(row)

    def _locate(self, index: int) -> tuple[Split, int]:
        row = index
        for part in self.parts:
            if row < len(part):
                return part, row
            row -= len(part)
        raise IndexError(f"row {index} of {len(self)}")
