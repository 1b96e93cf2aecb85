"""Samples drawn by class, so that rare classes are seen more often than pictures show them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segcore.data.class_points import ClassPoints
from segcore.data.shard_format import PixelCounts


class _Dataset(Protocol):
    @property
    def pixel_counts(self) -> PixelCounts: ...
    def class_points(self) -> ClassPoints: ...


@dataclass(frozen=True)
class ByClass:
    """Replaces a share of the rows by ones drawn by class, with a pixel to crop over.

    A class is drawn with a probability that falls with the root of its share of the pixels: a
    class of 1 % comes up 10 times as often as a pixel-wise draw would, not 100 times.

    Args:
        share: of the samples, in 0..1.
        points: where the classes are.
        rows: rows with each class; classes without any are left out.
        odds: of each class in `rows`, summing to 1.
    """

    share: float
    points: ClassPoints
    rows: Mapping[int, NDArray[np.int32]]
    odds: NDArray[np.float64]

    def __call__(self, row: int, rng: np.random.Generator) -> tuple[int, tuple[int, int] | None]:
        """The row to show in place of `row`, and the (y, x) over which it is to be cropped."""
        if rng.random() >= self.share:
            return row, None
        index = list(self.rows)[int(rng.choice(len(self.odds), p=self.odds))]
        row = int(rng.choice(self.rows[index]))
        y, x = rng.choice(self.points.points(row, index))
        return row, (int(y), int(x))


def create_by_class(dataset: _Dataset, share: float) -> ByClass | None:
    """The draw for a dataset's training split; None where no sample is drawn by class."""
    if share == 0:
        return None
    points = dataset.class_points()
    pixels = dataset.pixel_counts["pixels"]
    rows = {int(index): points.rows_of(int(index)) for index in np.unique(points.klass)}
    if not rows:
        return None
    odds = np.array([max(pixels[index], 1) ** -0.5 for index in rows])
    return ByClass(
        share=share,
        points=points,
        rows=rows,
        odds=odds / odds.sum(),
    )
