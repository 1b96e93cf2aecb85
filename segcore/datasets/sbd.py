"""SBD, semantic boundaries: VOC 2011's pictures with class maps and objects in .mat files.

Reference: Hariharan et al., ICCV 2011. Its training set overlaps VOC 2012's validation set: for
figures on that, use `voc2012` with the option `sbd`. MD5 as torchvision's.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segcore.data.codec import encode_mask
from segcore.data.objects import compact_ids, instances_of_ranks
from segcore.data.sample import BACKGROUND, DatasetInfo, Flaw, Objects, Sample, tasks_of
from segcore.datasets.archive import Archive
from segcore.datasets.mat_file import read_struct
from segcore.datasets.palette import bit_palette
from segcore.datasets.publication import Publication, tail
from segcore.datasets.published import Entry, PublishedDataset, read_list
from segcore.errors import DataError

CLASSES = (
    BACKGROUND, "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
THINGS = (False,) + (True,) * 20

ARCHIVE = Archive(
    file="benchmark.tgz",
    url=(
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
        "benchmark.tgz"
    ),
    select=tail(r"dataset/(?:(?:img|cls|inst)/\w+\.(?:jpg|mat)|(?:train|val)\.txt)"),
    size=1_419_000_000,
    packed="md5:82b4d87ceb2ed10f6038a1cba92111cb",
)

PUBLICATION = Publication(
    name="sbd",
    page="http://home.bharathh.info/pubs/codes/SBD/download.html",
    archives=(ARCHIVE,),
    counts={"train": 8_498, "val": 2_857},
    roles={"train": "train", "val": "test"},
    marker="cls",
    tops=("dataset", "benchmark_RELEASE/dataset"),
    layout="img/*.jpg, cls/*.mat, inst/*.mat, train.txt and val.txt",
)

_select_labels = tail(r"(?:cls|inst)/\w+\.mat|dataset/(?:train|val)\.txt")


def select_labels(name: str) -> str | None:
    """Labels and lists alone, to SBD/."""
    found = _select_labels(name)
    return None if found is None else f"SBD/{found.removeprefix('dataset/')}"


def read_names(folder: Path) -> list[str]:
    """Names of all images, those of the training list first.

    Raises:
        DataError: a list is missing.
    """
    return [name for split in ("train", "val") for name in read_list(folder / f"{split}.txt")]


def label_files(folder: Path, name: str) -> tuple[Path, Path]:
    """Class map and objects of an image."""
    return folder / "cls" / f"{name}.mat", folder / "inst" / f"{name}.mat"


@dataclass(frozen=True)
class SbdObjects:
    """The labels of one image.

    Args:
        classes: cls/*.mat, whose GTcls.Segmentation is the class map.
        file: inst/*.mat, whose GTinst has Segmentation, a map of 1, 2, ..., and the Categories of
            these objects.
    """

    classes: Path
    file: Path

    def read(self) -> Objects:
        """Read both files."""
        current = self.classes
        try:
            mask = read_struct(current, "GTcls", "Segmentation").astype(np.uint8)
            current = self.file
            ids = read_struct(current, "GTinst", "Segmentation").astype(np.int64)
            categories = read_struct(current, "GTinst", "Categories").ravel().astype(int)
        except DataError as error:
            fix = "replace it by an intact copy"
            return Objects(flaws=(Flaw(str(current), "unreadable objects", str(error), fix),))
        found, ranks = compact_ids(ids)
        known = [int(categories[i - 1]) if i <= categories.size else None for i in found.tolist()]
        flaws = tuple(
            Flaw(str(self.file), "unknown segment id", str(number), "list it in Categories")
            for number, category in zip(found, known, strict=True)
            if category is None
        )
        return Objects(instances_of_ranks(ranks, known), encode_mask(mask), flaws)


class Sbd(PublishedDataset):
    """SBD, semantic and instances: 8,498 training images; test is its validation set (2,857)."""

    @property
    def publication(self) -> Publication:
        return PUBLICATION

    def list_entries(self, root: Path) -> list[Entry]:
        """In the order of the lists."""
        return [
            Entry(split, name, root / "img" / f"{name}.jpg", label_files(root, name))
            for split in ("train", "val")
            for name in read_list(root / f"{split}.txt")
        ]

    def describe(self) -> DatasetInfo:
        return DatasetInfo(
            name="sbd",
            version="1",
            classes=CLASSES,
            palette=bit_palette(len(CLASSES)),
            tasks=tasks_of(CLASSES, THINGS, instances=True),
            things=THINGS,
        )

    def sample(self, entry: Entry, split: str) -> Sample:
        return Sample(entry.name, split, entry.image, objects=SbdObjects(*entry.labels))
