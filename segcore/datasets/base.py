"""What a dataset adapter is: it fills a raw folder, describes itself and yields samples."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from segcore.data.sample import DatasetInfo, Sample

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, done so far, total; total 0 while it is unknown)."""


def silent(what: str, done: int, total: int) -> None:
    """The progress that tells nobody."""


@dataclass(frozen=True)
class DataSource:
    """Where a dataset comes from and where its raw files go.

    Args:
        raw: folder that `download` fills and `samples` reads.
        path: the user's own folder; None where the dataset needs none.
        classes: names in index order that replace those found with the data; None: as found.
        ignore_index: mask value that counts nowhere, for datasets that fix none themselves.
        val_fraction: share of the samples, in 0..1, that validates where no split is given.
        test_fraction: likewise for the test split.
        seed: of everything random.
        options: of this dataset alone.
        mirror: folder that may hold the dataset's archive, asked before the network.
    """

    raw: Path
    path: Path | None = None
    classes: tuple[str, ...] | None = None
    ignore_index: int = 255
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    mirror: Path | None = None


class Dataset(Protocol):
    """One dataset of `DATASETS`, built as `Adapter(source)`."""

    def download(self, progress: Progress = silent) -> None:
        """Fill `source.raw`. Idempotent, can be killed and run again, verifies what it got.

        Raises:
            DataError: the data cannot be had or is not what it should be.
        """

    def info(self) -> DatasetInfo:
        """What holds for every sample; after `download`."""

    def samples(self) -> Iterator[Sample]:
        """Every sample, in the same order each time; after `download`."""
