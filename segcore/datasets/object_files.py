"""One mask file an object: ID/images/*.png and ID/masks/*.png, as in BBBC038 (DSB 2018)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segcore.data.codec import encode_mask, read_image
from segcore.data.objects import instance_of
from segcore.data.sample import BACKGROUND, SPLITS, DatasetInfo, Flaw, Instance, Objects, Sample
from segcore.datasets.base import DataSource
from segcore.datasets.id_folder import binary_info
from segcore.datasets.layout import FOLDERS, IMAGE_SUFFIXES, Key
from segcore.datasets.palette import read_classes
from segcore.errors import DataError

_RESERVED = {*SPLITS, *(name.lower() for names in FOLDERS.values() for name in names)}


@dataclass(frozen=True)
class ObjectFiles:
    """The objects of one image, a binary mask file each.

    Args:
        file: the folder of the masks.
        image: whose size they must have.
        category: class index of all objects.
    """

    file: Path
    image: Path
    category: int = 1

    def read(self) -> Objects:
        """Read all masks; what is not 0 belongs to the object."""
        with Image.open(self.image) as image:
            size = (image.height, image.width)
        union = np.zeros(size, dtype=np.uint8)
        instances: list[Instance] = []
        flaws: list[Flaw] = []
        for file in pictures(self.file):
            try:
                mask = _read_binary(file)
            except (OSError, DataError) as error:
                fix = "replace the file by an intact copy"
                flaws.append(Flaw(str(file), "unreadable mask", str(error), fix))
                continue
            if mask.shape != size:
                value = f"mask {mask.shape[0]}x{mask.shape[1]}, image {size[0]}x{size[1]}"
                fix = "give image and mask the same height and width"
                flaws.append(Flaw(str(file), "size mismatch", value, fix))
                continue
            instance = instance_of(mask, self.category)
            if instance is None:
                fix = "draw the object, or remove the file"
                flaws.append(Flaw(str(file), "empty object", "no pixel", fix))
                continue
            union[mask] = self.category
            instances.append(instance)
        return Objects(tuple(instances), encode_mask(union), tuple(flaws))


def _read_binary(file: Path) -> NDArray[np.bool_]:
    """Pixels of a mask file that are not 0.

    Raises:
        DataError: it is no image.
    """
    image = read_image(file.read_bytes())
    if image.mode in ("RGBA", "LA", "PA"):
        image = image.convert("RGB")
    values = np.asarray(image)
    bits: NDArray[np.bool_] = values != 0 if values.ndim == 2 else (values != 0).any(axis=2)
    return bits


def pictures(folder: Path) -> list[Path]:
    """Image files of a folder, sorted."""
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)


def find_collections(path: Path) -> list[Path]:
    """Folders that hold ID/images and ID/masks: `path`, or folders in it; empty if none does."""
    return [place for place in (path, *_folders(path)) if any(map(_is_case, _folders(place)))]


def _folders(path: Path) -> list[Path]:
    found = (entry for entry in path.iterdir() if not entry.name.startswith("."))
    return sorted(entry for entry in found if entry.is_dir())


def _is_case(folder: Path) -> bool:
    """Whether a folder has one picture in images/ and masks/ beside it."""
    usual = folder.name.lower() in _RESERVED
    if usual or not (folder / "masks").is_dir():
        return False
    return len(pictures(folder / "images")) == 1


class ObjectFileFolder:
    """Folders ID/images/*.png and ID/masks/*.png, of one thing class.

    A collection that is called train, val, test or unlabelled gives the split.
    """

    def __init__(self, path: Path, source: DataSource) -> None:
        self.path = path
        self.source = source
        self.cases: dict[Key, Path] = {}
        for collection in find_collections(path):
            split = collection.name if collection != path and collection.name in SPLITS else ""
            for case in _folders(collection):
                if (case / "images").is_dir() or (case / "masks").is_dir():
                    self.cases[split, case.name] = case

    @property
    def keys(self) -> list[Key]:
        return sorted(self.cases, key=lambda key: (key[1], key[0]))

    @property
    def files(self) -> list[Path]:
        """Images and masks."""
        kinds = [case / kind for case in self.cases.values() for kind in ("images", "masks")]
        return [file for kind in kinds for file in pictures(kind)]

    def info(self, name: str) -> DatasetInfo:
        """Background and one thing.

        Raises:
            DataError: other than two classes are named.
        """
        names, colors = read_classes(self.path / "classes.txt")
        classes = self.source.classes or names or (BACKGROUND, "object")
        return binary_info(name, classes, colors, self.source)

    def samples(self, splits: Mapping[Key, str]) -> Iterator[Sample]:
        """Sorted by id."""
        for key in filter(splits.__contains__, self.keys):
            yield read_case(self.cases[key], splits[key])


def read_case(case: Path, split: str) -> Sample:
    """The sample of a folder with images/ and masks/; the first image counts."""
    found = pictures(case / "images")
    image = found[0] if found else case / "images" / f"{case.name}.png"
    masks = case / "masks"
    labelled = split != "unlabelled" and masks.is_dir()
    return Sample(case.name, split, image, objects=ObjectFiles(masks, image) if labelled else None)
