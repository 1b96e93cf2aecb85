"""A folder of images and id maps, one value an object, with class masks beside them or without.

VOC's layout is one: JPEGImages, SegmentationClass, SegmentationObject.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segcore.data.codec import encode_mask
from segcore.data.labels import LabelError, read_labels
from segcore.data.objects import compact_ids, instances_of_ranks
from segcore.data.sample import BACKGROUND, DatasetInfo, Flaw, Objects, Sample, tasks_of
from segcore.datasets.base import DataSource
from segcore.datasets.id_png import read_ids
from segcore.datasets.layout import Key
from segcore.datasets.mask_folder import MaskFolder
from segcore.datasets.palette import make_palette
from segcore.errors import DataError, OptionError

SEVERAL = 0.9


class IdFolder:
    """Images, id maps and perhaps masks.

    The class of an object is the one that most of its pixels have in the mask; void pixels there
    (VOC's borders) are no object. A class is a thing where objects cover half of its pixels or
    more, or where the option `things` names it. Without masks there is one thing class.

    Args:
        path: the folder.
        source: as of `MaskFolder`.
        ids: id maps by the keys of their images.
        masks: masks likewise.
        assumptions: that were made on the way here.
    """

    def __init__(
        self,
        path: Path,
        source: DataSource,
        ids: Mapping[Key, list[Path]],
        masks: Mapping[Key, list[Path]],
        assumptions: tuple[tuple[str, str, str], ...] = (),
    ) -> None:
        self.path = path
        self.source = source
        self.ids = ids
        self.assumptions = assumptions
        self.inner = MaskFolder(path, source, masks)
        self.folder = next(iter(ids.values()))[0].parent

    @property
    def keys(self) -> list[Key]:
        """Of images, masks and id maps."""
        return [*self.inner.keys, *(key for key in self.ids if key not in self.inner.images)]

    @property
    def files(self) -> list[Path]:
        """Images, masks and id maps."""
        return [*self.inner.files, *(file for found in self.ids.values() for file in found)]

    def info(self, name: str) -> DatasetInfo:
        """Classes of the masks, or background and one thing.

        Raises:
            DataError: without masks, other than two classes are named.
            OptionError: `things` names no class.
        """
        base = self._masked(name) if self.inner.masks else self._plain(name)
        tasks = tasks_of(base.classes, base.things, instances=True)
        return replace(base, tasks=tasks, assumptions=(*base.assumptions, *self.assumptions))

    def _plain(self, name: str) -> DatasetInfo:
        names, colors = self.inner.classes
        return binary_info(name, names or (BACKGROUND, "object"), colors, self.source)

    def _masked(self, name: str) -> DatasetInfo:
        base = self.inner.info(name)
        named = self.source.options.get("things")
        if named is None:
            return replace(base, things=self._things)
        unknown = [thing for thing in named if thing not in base.classes]
        if unknown:
            known = ", ".join(base.classes)
            raise OptionError(f"things names {unknown[0]!r}, the classes are {known}")
        return replace(base, things=tuple(c in named for c in base.classes))

    @cached_property
    def _things(self) -> tuple[bool, ...]:
        """Per class, whether objects cover half of its pixels or more."""
        info = self.inner.info("")
        pairs = [
            (found[0], self.inner.masks[key][0])
            for key, found in self.ids.items()
            if key in self.inner.masks
        ]
        covered, total = np.zeros(256, dtype=np.int64), np.zeros(256, dtype=np.int64)
        with ThreadPoolExecutor(8) as pool:
            for votes in pool.map(lambda pair: _read_votes(pair[0], pair[1], info), pairs):
                if votes is not None:
                    best = votes[1:].argmax(axis=1)
                    np.add.at(covered, best, votes[1:].max(axis=1))
                    total += votes.sum(axis=0)
        shares = covered / np.maximum(total, 1)
        return tuple(bool(share >= 0.5) for share in shares[: info.num_classes])

    def samples(self, splits: Mapping[Key, str]) -> Iterator[Sample]:
        """Sorted by stem; what lacks its image, mask or id map is yielded too."""
        info = self.info("")
        masked = bool(self.inner.masks)
        for key, sample in self.inner.pairs(splits, self.ids):
            found = self.ids.get(key)
            if found is None and (sample.mask is None or sample.split == "unlabelled"):
                yield sample
                continue
            file = found[0] if found else self.folder / f"{Path(key[1]).name}.png"
            mask = sample.mask if isinstance(sample.mask, Path) else None
            if mask is not None or not masked:
                sample = replace(sample, objects=IdObjects(file, mask, info))
            yield sample


def binary_info(
    name: str,
    classes: tuple[str, ...],
    colors: tuple[tuple[int, int, int], ...],
    source: DataSource,
) -> DatasetInfo:
    """A dataset of a background and one thing class.

    Raises:
        DataError: other than two classes are named.
    """
    if len(classes) != 2:
        raise DataError(
            f"{len(classes)} classes are named ({', '.join(classes)}), objects without class masks "
            "are of one: name two, the background first, or add masks/ of class indices"
        )
    things = (False, True)
    return DatasetInfo(
        name=name,
        version="1",
        classes=classes,
        palette=colors or make_palette(2),
        ignore_index=source.ignore_index,
        tasks=tasks_of(classes, (False, True), instances=True),
        things=things,
    )


def _votes(ranks: NDArray[np.int32], labels: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """[count + 1, 256]: pixels of each class in what is no object, and in each object."""
    joint = ranks.ravel().astype(np.int64) * 256 + labels.ravel()
    return np.bincount(joint, minlength=(count + 1) * 256).reshape(count + 1, 256)


def _read_votes(ids: Path, mask: Path, info: DatasetInfo) -> NDArray[np.int64] | None:
    """`_votes` of two files, ignored pixels left out; None if they cannot be read."""
    try:
        labels = read_labels(mask.read_bytes(), info)
        found, ranks = compact_ids(read_ids(ids))
    except (OSError, DataError):
        return None
    if ranks.shape != labels.shape:
        return None
    votes = _votes(ranks, labels, found.size)
    if 0 <= info.ignore_index <= 255:
        votes = votes[np.r_[True, votes[1:].argmax(axis=1) != info.ignore_index]]
        votes[:, info.ignore_index] = 0
    return votes


@dataclass(frozen=True)
class IdObjects:
    """The objects of an id map.

    Args:
        file: the id map.
        mask: of class indices; None: all objects are of class 1, and it follows from them.
        info: how the mask is encoded, and which classes are things.
    """

    file: Path
    mask: Path | None
    info: DatasetInfo

    def read(self) -> Objects:
        """Read the map and give each object its class."""
        try:
            found, ranks = compact_ids(read_ids(self.file))
        except DataError as error:
            missing = not self.file.is_file()
            fault = "missing objects" if missing else "unreadable objects"
            fix = "add its id map" if missing else "save ids as a one-channel PNG of 16 bits"
            return Objects(flaws=(Flaw(str(self.file), fault, str(error), fix),))
        if self.mask is None:
            instances = instances_of_ranks(ranks, [1] * found.size)
            return Objects(instances, encode_mask((ranks > 0).astype(np.uint8)))
        try:
            labels = read_labels(self.mask.read_bytes(), self.info)
        except (OSError, LabelError):
            return Objects()  # the mask has a fault of its own
        if labels.shape != ranks.shape:
            value = f"ids {_size(ranks)}, mask {_size(labels)}"
            fix = "give them the same height and width"
            return Objects(flaws=(Flaw(str(self.file), "size mismatch", value, fix),))
        flaws: list[Flaw] = []
        votes = _votes(ranks, labels, found.size)[1:]
        categories = [
            self._category(number, row, flaws) for number, row in zip(found, votes, strict=True)
        ]
        return Objects(instances_of_ranks(ranks, categories), flaws=tuple(flaws))

    def _category(self, number: int, votes: NDArray[np.int64], flaws: list[Flaw]) -> int | None:
        """The class of an object; None where it is none."""
        index = int(votes.argmax())
        if index == self.info.ignore_index:
            return None
        name = self.info.classes[index] if index < self.info.num_classes else str(index)
        share = votes[index] / votes.sum()
        if index < self.info.num_classes and not self.info.things[index]:
            fix = "correct the id map or the mask, or name the things in data.options.things"
            flaws.append(
                Flaw(str(self.file), "object of a stuff class", f"id {number}: {name}", fix)
            )
            return None
        if share < SEVERAL:
            value = f"id {number}: {share:.0%} {name}"
            fix = "nothing, or give each object one class in the mask"
            flaws.append(Flaw(str(self.file), "object of several classes", value, fix, "warning"))
        return index


def _size(array: NDArray[Any]) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"
