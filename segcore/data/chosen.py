"""Some rows of a split, read as a split."""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from segcore.data.rows import Split
from segcore.data.shard_format import Row


class ChosenRows:
    """Some rows of a split.

    Args:
        split: that has them.
        rows: their numbers there.
    """

    def __init__(self, split: Split, rows: Sequence[int]) -> None:
        self.split = split
        self.rows = list(rows)
        self.ids = [split.ids[row] for row in rows]
        self.sizes = [split.sizes[row] for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def decode(self, index: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
        """As `Split.decode`."""
        return self.split.decode(self.rows[index])

    def read(self, index: int) -> Row:
        """As `Split.read`."""
        return self.split.read(self.rows[index])
