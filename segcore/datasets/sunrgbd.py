"""SUN RGB-D in 37 classes: indoor scenes of four cameras, colour only, as SegNet uses them.

References: Song et al., CVPR 2015; pictures and label maps, their order and counts:
github.com/ankurhanda/sunrgbd-meta-data (README.md), since the toolbox's SUNRGBD2Dseg.mat needs
64 GB of memory to be read. The classes are the first 37 of NYUDv2's 40.
"""

import re
from pathlib import Path

from segcore.data.sample import DatasetInfo, Sample
from segcore.datasets.archive import Archive
from segcore.datasets.palette import make_palette
from segcore.datasets.publication import Publication
from segcore.datasets.published import Entry, PublishedDataset
from segcore.errors import DataError

CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror",
    "floor mat", "clothes", "ceiling", "books", "fridge", "tv", "paper", "towel",
    "shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp",
    "bathtub", "bag",
)  # fmt: skip

FOLDERS = {"train": "SUNRGBD-train_images", "test": "SUNRGBD-test_images"}
LABELS = "sunrgbd_train_test_labels"
# Labels 1..5050 are those of the test images, 5051..10335 those of the training images 1..5285.
FIRST = {"train": 5_050, "test": 0}
# Neighbours in the list are often of one room: training images are held out in blocks.
BLOCK = 50

_NUMBER = re.compile(r"(\d+)\.(?:jpg|png)")


def _archive(file: str, url: str, folder: str) -> Archive:
    """An archive whose files, wherever they lie in it, go to one folder."""

    def select(name: str) -> str | None:
        last = name.rpartition("/")[2]
        return f"{folder}/{last}" if _NUMBER.search(last) else None

    return Archive(file=file, url=url, select=select)


PUBLICATION = Publication(
    name="sunrgbd",
    page="https://github.com/ankurhanda/sunrgbd-meta-data",
    archives=(
        *(
            _archive(f"{folder}.tgz", f"http://www.doc.ic.ac.uk/~ahanda/{folder}.tgz", folder)
            for folder in FOLDERS.values()
        ),
        _archive(
            f"{LABELS}.tar.gz",
            f"https://github.com/ankurhanda/sunrgbd-meta-data/raw/master/{LABELS}.tar.gz",
            LABELS,
        ),
    ),
    counts={"train": 5_285, "test": 5_050},
    roles={"train": "train", "test": "test"},
    marker=LABELS,
    layout=f"{FOLDERS['train']}/*.jpg, {FOLDERS['test']}/*.jpg and {LABELS}/img-??????.png",
)


class SunRgbd(PublishedDataset):
    """SUN RGB-D 37, semantic: 5,285 training and 5,050 test images.

    Masks hold 1..37, and 0 for unlabelled, which counts nowhere.
    """

    @property
    def publication(self) -> Publication:
        return PUBLICATION

    def list_entries(self, root: Path) -> list[Entry]:
        """By number; label and image are paired by it.

        Raises:
            DataError: a picture has no number.
        """
        entries = []
        for split, folder in FOLDERS.items():
            images = {_number(image): image for image in (root / folder).glob("*.jpg")}
            for number, image in sorted(images.items()):
                label = root / LABELS / f"img-{FIRST[split] + number:06d}.png"
                name = f"{split}-{number:06d}"
                group = f"{split}-{number // BLOCK}"
                entries.append(Entry(split, name, image, (label,), group))
        return entries

    def describe(self) -> DatasetInfo:
        return DatasetInfo(
            name="sunrgbd",
            version="1",
            classes=CLASSES,
            palette=make_palette(len(CLASSES)),
            mask_values={0: 255} | {index + 1: index for index in range(len(CLASSES))},
        )

    def sample(self, entry: Entry, split: str) -> Sample:
        return Sample(entry.name, split, entry.image, entry.labels[0])


def _number(image: Path) -> int:
    """The number with which a name ends.

    Raises:
        DataError: it ends with none.
    """
    match = _NUMBER.search(image.name)
    if match is None:
        raise DataError(f"{image} has no number: names are img-000001.jpg and so on")
    return int(match[1])
