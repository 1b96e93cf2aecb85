"""Cross-validation over a training split: the parts of it, and a dataset without one of them."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from segcore.data.chosen import ChosenRows
from segcore.data.class_points import ClassPoints
from segcore.data.shards import ShardedDataset
from segcore.errors import OptionError

FOLD_STREAM = 4
TRAIN = "train"


def fold_rows(count: int, folds: int, *, seed: int) -> list[list[int]]:
    """Rows 0..count-1 in parts of equal size (or one more), drawn by the seed alike everywhere.

    Returns:
        The rows of each part, ascending.

    Raises:
        OptionError: fewer than 2 parts, or more than rows.
    """
    if not 2 <= folds <= count:
        raise OptionError(
            f"folds is {folds} for {count} training pictures: give 2 or more, at most one a picture"
        )
    bits = np.random.Philox(np.random.SeedSequence([FOLD_STREAM, seed]))
    order = np.argsort(bits.random_raw(count), kind="stable")
    return [sorted(int(row) for row in order[part::folds]) for part in range(folds)]


class FoldedDataset(ShardedDataset):
    """A dataset whose split train lacks some rows; all else is as in the whole.

    Class counts and normalisation stay those of the whole split: a few numbers, which cannot tell
    a model the label of a picture.

    Args:
        whole: that has all rows.
        held_out: rows of its split train that are left out.
    """

    def __init__(self, whole: ShardedDataset, held_out: Sequence[int]) -> None:
        vars(self).update(vars(whole))  # the manifest is read and checked already
        out = set(held_out)
        rows = range(whole.splits.get(TRAIN, 0))
        self.kept = [row for row in rows if row not in out]
        self.splits = {**whole.splits, TRAIN: len(self.kept)}
        text = f"{whole.digest} without {sorted(out)}"
        self.digest = hashlib.sha256(text.encode()).hexdigest()  # caches must tell them apart

    def class_points(self) -> ClassPoints:
        """Of the rows that are kept, under their new numbers."""
        return choose_points(super().class_points(), self.kept)

    def split(self, name: str) -> Any:
        """As `ShardedDataset.split`; of train, the rows that are kept."""
        found = super().split(name)
        return ChosenRows(found, self.kept) if name == TRAIN else found


def choose_points(points: ClassPoints, rows: Sequence[int]) -> ClassPoints:
    """The points of some rows, renumbered 0, 1, ... in their order.

    Args:
        rows: ascending.
    """
    kept = np.asarray(rows, np.int32)
    entries = np.flatnonzero(np.isin(points.row, kept))
    starts, ends = points.start[entries], points.start[entries + 1]
    spans = [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]
    places = np.concatenate([np.empty(0, np.int64), *spans])
    return ClassPoints(
        row=np.searchsorted(kept, points.row[entries]).astype(np.int32),
        klass=points.klass[entries],
        start=np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64),
        ys=points.ys[places],
        xs=points.xs[places],
    )
