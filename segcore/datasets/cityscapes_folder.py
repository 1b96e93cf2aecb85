"""Folders laid out as Cityscapes: leftImg8bit/SPLIT/CITY/x_leftImg8bit.png, gtFine/... likewise.

Reference: Cordts et al., CVPR 2016, arXiv:1604.01685; github.com/mcordts/cityscapesScripts.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segcore.data.labels import LabelError, read_labels
from segcore.data.objects import compact_ids, instances_of_ranks
from segcore.data.sample import (
    SPLITS,
    DatasetInfo,
    Flaw,
    Instance,
    Objects,
    Sample,
    tasks_of,
)
from segcore.datasets.base import DataSource
from segcore.datasets.id_png import read_ids
from segcore.datasets.layout import IMAGE_SUFFIXES, Key
from segcore.datasets.mask_folder import MaskFolder
from segcore.errors import DataError, OptionError

IMAGES = ("leftImg8bit", "imgsFine/leftImg8bit")  # the second as CVAT writes it
LABELS = ("gtFine", "gtCoarse")
KINDS = ("labelTrainIds", "labelIds")  # the first is preferred: its ids are those of training
OBJECT = 1000  # an instance id from here on is one object: 1000 times its class and a number


def image_folder(path: Path) -> Path | None:
    """Where the images of such a folder are; None if it is not one."""
    return next((path / name for name in IMAGES if (path / name).is_dir()), None)


class CityscapesFolder:
    """Images, label maps and perhaps instance ids.

    Classes that have objects are things; the option `things` names others.

    Args:
        path: the folder.
        source: classes, ignored index and the options `mask_values`, `things`.

    Raises:
        DataError: no image has a label map.
    """

    def __init__(self, path: Path, source: DataSource) -> None:
        self.path = path
        self.source = source
        images = _find(image_folder(path) or path, "leftImg8bit")
        truth = next((path / name for name in LABELS if (path / name).is_dir()), path / LABELS[0])
        of_kind = ((kind, _find(truth, f"{truth.name}_{kind}")) for kind in KINDS)
        masks = next((found for _, found in of_kind if found), {})
        self.ids = _find(truth, f"{truth.name}_instanceIds")
        if not images.keys() & masks.keys():
            raise DataError(
                f"no image of {path} has a label map: it needs {IMAGES[0]}/SPLIT/CITY/"
                f"x_leftImg8bit.png and {truth.name}/SPLIT/CITY/x_{truth.name}_labelIds.png or "
                f"..._{KINDS[0]}.png"
            )
        self.inner = MaskFolder(path, source, masks, images)

    @property
    def keys(self) -> list[Key]:
        """Of images and label maps."""
        return self.inner.keys

    @property
    def files(self) -> list[Path]:
        """Images, label maps and instance ids."""
        return [*self.inner.files, *(file for found in self.ids.values() for file in found)]

    def info(self, name: str) -> DatasetInfo:
        """Classes as `MaskFolder` finds them.

        Raises:
            OptionError: `things` names no class.
        """
        base = self.inner.info(name)
        if not self.ids:
            return base
        named = self.source.options.get("things")
        unknown = [thing for thing in named or () if thing not in base.classes]
        if unknown:
            known = ", ".join(base.classes)
            raise OptionError(f"things names {unknown[0]!r}, the classes are {known}")
        if named is None:
            named = [c for index, c in enumerate(base.classes) if index in self._with_objects]
        things = tuple(c in named for c in base.classes)
        return replace(base, things=things, tasks=tasks_of(base.classes, things, instances=True))

    @cached_property
    def _with_objects(self) -> set[int]:
        """Classes of which there is an object."""
        info = self.inner.info("")
        masks = self.inner.masks
        pairs = [(f[0], masks[key][0]) for key, f in self.ids.items() if key in masks]
        with ThreadPoolExecutor(8) as pool:
            found = pool.map(lambda pair: _object_classes(pair[0], pair[1], info), pairs)
            return set().union(*found) - {info.ignore_index}

    def samples(self, splits: Mapping[Key, str]) -> Iterator[Sample]:
        """Sorted by name; an image without a label map, or the reverse, is yielded too."""
        info = self.info("")
        for key, sample in self.inner.pairs(splits):
            mask, found = sample.mask, self.ids.get(key)
            if found and isinstance(mask, Path):
                sample = replace(sample, objects=CityscapesObjects(found[0], mask, info))
            yield sample


def _find(folder: Path, ending: str) -> dict[Key, list[Path]]:
    """Files of a folder whose stems end so, by their split and what comes before the ending."""
    files: dict[Key, list[Path]] = {}
    for file in sorted(folder.rglob(f"*_{ending}.*")):
        below = file.relative_to(folder)
        split = below.parts[0] if below.parts[0] in SPLITS else ""
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith("."):
            files.setdefault((split, file.stem.removesuffix(f"_{ending}")), []).append(file)
    return files


def _object_classes(ids: Path, mask: Path, info: DatasetInfo) -> set[int]:
    """Classes of the objects of one image; none if it cannot be read (validation says why)."""
    try:
        labels = read_labels(mask.read_bytes(), info)
        values = read_ids(ids)
    except (OSError, DataError):
        return set()
    if values.shape != labels.shape:
        return set()
    return set(np.unique(labels[values >= OBJECT]).tolist())


@dataclass(frozen=True)
class CityscapesObjects:
    """The objects of one image of ids.

    An id from 1000 on is an object, whose class is the one that most of its pixels have in the
    mask. Of a thing class, pixels of lower ids are a group that was not separated: a crowd.

    Args:
        file: the ids.
        mask: the label map.
        info: how the mask is encoded, and which classes are things.
    """

    file: Path
    mask: Path
    info: DatasetInfo

    def read(self) -> Objects:
        """Read both files."""
        try:
            ids = read_ids(self.file)
        except DataError as error:
            missing = not self.file.is_file()
            fault = "missing objects" if missing else "unreadable objects"
            fix = "add its instance ids" if missing else "save ids as a one-channel PNG of 16 bits"
            return Objects(flaws=(Flaw(str(self.file), fault, str(error), fix),))
        try:
            labels = read_labels(self.mask.read_bytes(), self.info)
        except (OSError, LabelError):
            return Objects()  # the mask has a fault of its own
        if labels.shape != ids.shape:
            value = f"ids {ids.shape[0]}x{ids.shape[1]}, mask {labels.shape[0]}x{labels.shape[1]}"
            fix = "give them the same height and width"
            return Objects(flaws=(Flaw(str(self.file), "size mismatch", value, fix),))
        return Objects(self._instances(ids, labels))

    def _instances(self, ids: NDArray[np.int64], labels: NDArray[np.uint8]) -> tuple[Instance, ...]:
        thing = np.zeros(256, dtype=bool)
        thing[: len(self.info.things)] = self.info.things
        groups = np.where(thing[labels], labels.astype(np.int64) + 1, 0)
        found, ranks = compact_ids(np.where(ids >= OBJECT, ids, groups))
        joint = ranks.ravel().astype(np.int64) * 256 + labels.ravel()
        votes = np.bincount(joint, minlength=(found.size + 1) * 256).reshape(-1, 256)[1:]
        categories = [int(c) if thing[c] else None for c in votes.argmax(axis=1)]
        return instances_of_ranks(ranks, categories, (found < OBJECT).tolist())
