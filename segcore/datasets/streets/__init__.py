"""Dataset `streets`: procedural street scenes, rendered here, with exact labels of every kind.

Classes: stuff sky, building, road (carriageway and pavements), grass (verges, lawns, far hills);
things car, person, tree.
"""

from collections.abc import Iterator
from pathlib import Path

from segcore.data.sample import SPLITS, DatasetInfo, Instance, Sample
from segcore.datasets.base import DataSource, Progress, silent
from segcore.datasets.streets.scene import CLASSES, PALETTE, THINGS
from segcore.datasets.streets.store import VERSION, Plan, fill, read_instances

__all__ = ["Streets"]


class Streets:
    """Street scenes rendered here, semantic, instances and panoptic: needs no network.

    Options (`source.options`): num_train (320), num_val (48), num_test (96),
    num_unlabelled (0), height (128) and width (192) of the pictures in pixels.

    Raises:
        OptionError: an option is unknown or out of range.
    """

    def __init__(self, source: DataSource) -> None:
        self.raw = source.raw
        self.plan = Plan.of(source.options, seed=source.seed)

    def download(self, progress: Progress = silent) -> None:
        """Render what is missing; other options or another seed start from nothing.

        Raises:
            DataError: the folder cannot be written.
        """
        fill(self.raw, self.plan, progress)

    def info(self) -> DatasetInfo:
        """What holds for every sample."""
        return DatasetInfo(
            name="streets",
            version=VERSION,
            classes=CLASSES,
            palette=PALETTE,
            tasks=("semantic", "instance", "panoptic"),
            things=THINGS,
        )

    def samples(self) -> Iterator[Sample]:
        """Every sample, split by split; those of "unlabelled" come without mask and instances.

        Raises:
            DataError: nothing was rendered yet.
        """
        for split in SPLITS:
            objects = read_instances(self.raw, self.plan, split)
            for name in self.plan.ids(split):
                yield self._sample(split, name, objects.get(name))

    def _sample(self, split: str, name: str, objects: tuple[Instance, ...] | None) -> Sample:
        image = self._path("images", split, name)
        if split == "unlabelled":
            return Sample(name, split, image)
        return Sample(name, split, image, self._path("masks", split, name), objects or ())

    def _path(self, kind: str, split: str, name: str) -> Path:
        return self.raw / kind / split / f"{name}.png"
