"""NYU Depth v2 in 40 classes: indoor scenes, colour only, in the form that FCN's authors gave out.

References: Silberman et al., ECCV 2012; 40 classes: Gupta et al., CVPR 2013; lists, names and void
rule: github.com/shelhamer/fcn.berkeleyvision.org (data/nyud, nyud_layers.py). The original
nyu_depth_v2_labeled.mat is HDF5 with 894 classes and is not read.
"""

from pathlib import Path

from segcore.data.sample import DatasetInfo, Sample
from segcore.datasets.archive import Archive
from segcore.datasets.mat_file import MatMask
from segcore.datasets.palette import make_palette
from segcore.datasets.publication import Publication, tail
from segcore.datasets.published import Entry, PublishedDataset, read_list

CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror",
    "floor mat", "clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel",
    "shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp",
    "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)  # fmt: skip

PUBLICATION = Publication(
    name="nyuv2",
    page="https://github.com/shelhamer/fcn.berkeleyvision.org/tree/master/data/nyud",
    archives=(
        Archive(
            file="nyud.tar.gz",
            url="http://dl.caffe.berkeleyvision.org/nyud.tar.gz",
            select=tail(
                r"data/images/img_\d+\.png|segmentation/img_\d+\.mat|(?:train|val|test)\.txt"
            ),
        ),
    ),
    counts={"train": 381, "val": 414, "test": 654},
    roles={"train": "train", "val": "val", "test": "test"},
    marker="segmentation",
    tops=("nyud",),
    layout="data/images/img_*.png, segmentation/img_*.mat, train.txt, val.txt and test.txt",
)


class Nyuv2(PublishedDataset):
    """NYUDv2-40, semantic: 381 training, 414 validation and 654 test images.

    Published figures are trained on train and val together (795): `train.refit: true`. The maps
    hold 1..40, and 0 for void.
    """

    @property
    def publication(self) -> Publication:
        return PUBLICATION

    def list_entries(self, root: Path) -> list[Entry]:
        """In the order of the lists, whose lines are the numbers of images."""
        return [
            Entry(
                split=split,
                name=f"img_{number}",
                image=root / "data" / "images" / f"img_{number}.png",
                labels=(root / "segmentation" / f"img_{number}.mat",),
            )
            for split in PUBLICATION.roles
            for number in read_list(root / f"{split}.txt")
        ]

    def describe(self) -> DatasetInfo:
        return DatasetInfo(
            name="nyuv2",
            version="1",
            classes=CLASSES,
            palette=make_palette(len(CLASSES)),
        )

    def sample(self, entry: Entry, split: str) -> Sample:
        mask = MatMask(entry.labels[0], "segmentation")
        return Sample(entry.name, split, entry.image, objects=mask)
