"""Cityscapes: streets of 50 cities from a moving car, 2048x1024, 19 classes of 34 ids.

References: Cordts et al., CVPR 2016, arXiv:1604.01685; ids, colours, void and crowds:
github.com/mcordts/cityscapesScripts (helpers/labels.py, preparation/createPanopticImgs.py).
Non-commercial; a login is needed.
"""

from dataclasses import replace
from pathlib import Path

from segcore.data.sample import DatasetInfo, Sample, tasks_of
from segcore.datasets.archive import Archive
from segcore.datasets.base import DataSource
from segcore.datasets.cityscapes_folder import CityscapesObjects
from segcore.datasets.publication import Publication, tail
from segcore.datasets.published import Entry, PublishedDataset

# name -> (id, colour), in the order of the train ids.
CLASSES = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
IDS = range(34)  # those that no class has count nowhere
FIRST_THING = 11
THINGS = tuple(index >= FIRST_THING for index in range(len(CLASSES)))
VOID = 255

PUBLICATION = Publication(
    name="cityscapes",
    page="https://www.cityscapes-dataset.com/downloads",
    archives=(
        Archive(
            file="leftImg8bit_trainvaltest.zip",
            url="",
            select=tail(r"leftImg8bit/(?:train|val)/\w+/\w+\.png"),
        ),
        Archive(
            file="gtFine_trainvaltest.zip",
            url="",
            select=tail(r"gtFine/(?:train|val)/\w+/\w+_(?:labelIds|instanceIds)\.png"),
        ),
    ),
    counts={"train": 2_975, "val": 500},
    roles={"train": "train", "val": "test"},
    marker="leftImg8bit",
    layout=(
        "leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and "
        "gtFine/{train,val}/CITY/*_gtFine_{labelIds,instanceIds}.png"
    ),
)
EXTRA = "train_extra"
COARSE = (
    Archive(
        file="leftImg8bit_trainextra.zip",
        url="",
        select=tail(r"leftImg8bit/train_extra/\w+/\w+\.png"),
    ),
    Archive(
        file="gtCoarse.zip",
        url="",
        select=tail(r"gtCoarse/train_extra/\w+/\w+_(?:labelIds|instanceIds)\.png"),
    ),
)


class Cityscapes(PublishedDataset):
    """Cityscapes, semantic, instances and panoptic: 2,975 training images with fine labels.

    Test is the published validation set (500); val is drawn from the training set by whole cities.
    Option `coarse`: true adds the 19,998 coarsely labelled images of train_extra, whose labels
    leave out objects. Copies of other datasets in Cityscapes' ids work too, with `complete`: false.
    """

    options = ("coarse",)

    def __init__(self, source: DataSource) -> None:
        super().__init__(source)
        self.coarse = self._flag("coarse", default=False)

    @property
    def publication(self) -> Publication:
        if not self.source.options.get("coarse"):
            return PUBLICATION
        return replace(
            PUBLICATION,
            archives=(*PUBLICATION.archives, *COARSE),
            counts={**PUBLICATION.counts, EXTRA: 19_998},
            roles={**PUBLICATION.roles, EXTRA: "train"},
            layout=f"{PUBLICATION.layout}; the same of leftImg8bit and gtCoarse in {EXTRA}/",
        )

    def list_entries(self, root: Path) -> list[Entry]:
        """By split, city and name."""
        ending = "_leftImg8bit.png"
        entries = []
        for split in self.publication.roles:
            truth = "gtCoarse" if split == EXTRA else "gtFine"
            for image in sorted((root / "leftImg8bit" / split).glob(f"*/*{ending}")):
                city, name = image.parent.name, image.name.removesuffix(ending)
                labels = tuple(
                    root / truth / split / city / f"{name}_{truth}_{kind}.png"
                    for kind in ("labelIds", "instanceIds")
                )
                entries.append(Entry(split, name, image, labels, group=f"{split} {city}"))
        return entries

    def describe(self) -> DatasetInfo:
        values = dict.fromkeys(IDS, VOID)
        values |= {number: index for index, (number, _) in enumerate(CLASSES.values())}
        return DatasetInfo(
            name="cityscapes",
            version="1",
            classes=tuple(CLASSES),
            palette=tuple(color for _, color in CLASSES.values()),
            ignore_index=VOID,
            tasks=tasks_of(tuple(CLASSES), THINGS, instances=True),
            things=THINGS,
            mask_values=values,
        )

    def sample(self, entry: Entry, split: str) -> Sample:
        mask, ids = entry.labels
        objects = CityscapesObjects(ids, mask, self.described)
        return Sample(entry.name, split, entry.image, mask, objects=objects)
