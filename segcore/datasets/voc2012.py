"""PASCAL VOC 2012 segmentation: 20 things and background, with a void border around each object.

References: Everingham et al., IJCV 2015; host.robots.ox.ac.uk/pascal/VOC/voc2012. The larger
training set with SBD's labels (10,582 images) is that of Hariharan et al., ICCV 2011, as DeepLab
and others use it. MD5 as torchvision's.
"""

from dataclasses import replace
from pathlib import Path

from segcore.data.sample import DatasetInfo, Sample, tasks_of
from segcore.datasets import sbd
from segcore.datasets.archive import Archive
from segcore.datasets.base import DataSource
from segcore.datasets.id_folder import IdObjects
from segcore.datasets.palette import bit_palette
from segcore.datasets.publication import Publication, tail
from segcore.datasets.published import Entry, PublishedDataset, read_list

CLASSES = sbd.CLASSES
THINGS = (False,) + (True,) * 20
VOID = 255

TRAIN_AUG = 10_582  # (VOC's train and all of SBD) without VOC's val

PUBLICATION = Publication(
    name="voc2012",
    page="http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
    archives=(
        Archive(
            file="VOCtrainval_11-May-2012.tar",
            url="https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            select=tail(
                r"VOC2012/(?:JPEGImages|SegmentationClass|SegmentationObject)/\w+\.(?:jpg|png)"
                r"|VOC2012/ImageSets/Segmentation/\w+\.txt"
            ),
            size=2_000_000_000,
            packed="md5:6cd6e144f989b92b3379bac3b3de84fd",
        ),
    ),
    counts={"train": 1_464, "val": 1_449},
    roles={"train": "train", "val": "test"},
    marker="ImageSets/Segmentation/train.txt",
    tops=("VOC2012", "VOCdevkit/VOC2012"),
    layout="JPEGImages, SegmentationClass, SegmentationObject and ImageSets/Segmentation/*.txt",
)


class Voc2012(PublishedDataset):
    """PASCAL VOC 2012, semantic and instances: 1,464 training images, with SBD's labels 10,582.

    Test is the published validation set (1,449). Option `sbd`: true adds the images of SBD that
    are not in it; their labels have no void border, and VOC's own are preferred. It needs SBD's
    cls/ and inst/ in SBD/ of the unpacked copy, or its archive beside VOC's.
    """

    options = ("sbd",)

    def __init__(self, source: DataSource) -> None:
        super().__init__(source)
        self.sbd = self._flag("sbd", default=False)

    @property
    def publication(self) -> Publication:
        if not self.source.options.get("sbd"):
            return PUBLICATION
        return replace(
            PUBLICATION,
            archives=(*PUBLICATION.archives, replace(sbd.ARCHIVE, select=sbd.select_labels)),
            counts={"train": TRAIN_AUG, "val": 1_449},
            layout=f"{PUBLICATION.layout}, and SBD/{{cls,inst}}/*.mat, SBD/{{train,val}}.txt",
        )

    def list_entries(self, root: Path) -> list[Entry]:
        """In the order of the lists; those of SBD follow the training images."""
        lists = root / "ImageSets" / "Segmentation"
        train, val = (read_list(lists / f"{split}.txt") for split in ("train", "val"))
        entries = [self._entry(root, "train", name) for name in train]
        if self.sbd:
            inside, beside = root / "SBD", root.parent / "SBD"
            folder = beside if beside.is_dir() else inside
            known = {*train, *val}
            further = [n for n in sbd.read_names(folder) if n not in known]
            entries += [self._sbd_entry(root, folder, name) for name in further]
        return entries + [self._entry(root, "val", name) for name in val]

    def _entry(self, root: Path, split: str, name: str) -> Entry:
        kinds = ("SegmentationClass", "SegmentationObject")
        labels = tuple(root / kind / f"{name}.png" for kind in kinds)
        return Entry(split, name, root / "JPEGImages" / f"{name}.jpg", labels)

    def _sbd_entry(self, root: Path, folder: Path, name: str) -> Entry:
        image = root / "JPEGImages" / f"{name}.jpg"
        return Entry("train", name, image, sbd.label_files(folder, name))

    def describe(self) -> DatasetInfo:
        return DatasetInfo(
            name="voc2012",
            version="1",
            classes=CLASSES,
            palette=bit_palette(len(CLASSES)),
            ignore_index=VOID,
            tasks=tasks_of(CLASSES, THINGS, instances=True),
            things=THINGS,
        )

    def sample(self, entry: Entry, split: str) -> Sample:
        first, second = entry.labels
        if first.suffix == ".mat":
            objects = sbd.SbdObjects(first, second)
            return Sample(entry.name, split, entry.image, objects=objects)
        ids = IdObjects(second, first, self.described)
        return Sample(entry.name, split, entry.image, first, objects=ids)
