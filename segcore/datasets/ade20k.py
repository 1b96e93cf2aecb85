"""ADE20K, scene parsing challenge of 2016: 150 classes of things and stuff, indoors and outdoors.

References: Zhou et al., CVPR 2017, arXiv:1608.05442; counts, void rule and names:
github.com/CSAILVision/sceneparsing (README.md, objectInfo150.txt). The score of the challenge is
the mean of pixel accuracy and mean IoU, without pixels of "other". SHA-1 as GluonCV's.
"""

from pathlib import Path

from segcore.data.sample import DatasetInfo, Sample
from segcore.datasets.archive import Archive
from segcore.datasets.palette import make_palette
from segcore.datasets.publication import Publication, tail
from segcore.datasets.published import Entry, PublishedDataset

# The first of each class's synonyms, in the order of objectInfo150.txt.
_NAMES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person,
earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea,
mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion,
base, box, column, signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace,
refrigerator, grandstand, path, stairs, runway, case, pool table, pillow, screen door, stairway,
river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop, stove,
palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light,
truck, tower, chandelier, awning, streetlight, booth, television, airplane, dirt track, apparel,
pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain,
conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent,
bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle,
lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan,
pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
"""
CLASSES = tuple(name.strip() for name in _NAMES.split(","))

PUBLICATION = Publication(
    name="ade20k",
    page="http://sceneparsing.csail.mit.edu",
    archives=(
        Archive(
            file="ADEChallengeData2016.zip",
            url="http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
            select=tail(r"(?:images|annotations)/(?:training|validation)/ADE_\w+\.(?:jpg|png)"),
            size=968_000_000,
            packed="sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
        ),
    ),
    counts={"training": 20_210, "validation": 2_000},
    roles={"training": "train", "validation": "test"},
    marker="images",
    tops=("ADEChallengeData2016",),
    layout="images/{training,validation}/*.jpg and annotations/{training,validation}/*.png",
)


class Ade20k(PublishedDataset):
    """ADE20K-150, semantic: 20,210 training images; test is the published validation set (2,000).

    Masks hold 1..150, and 0 for "other", which counts nowhere.
    """

    @property
    def publication(self) -> Publication:
        return PUBLICATION

    def list_entries(self, root: Path) -> list[Entry]:
        """Sorted by name, training images first."""
        return [
            Entry(
                split=split,
                name=image.stem,
                image=image,
                labels=(root / "annotations" / split / f"{image.stem}.png",),
            )
            for split in PUBLICATION.roles
            for image in sorted((root / "images" / split).glob("*.jpg"))
        ]

    def describe(self) -> DatasetInfo:
        values = {0: 255} | {index + 1: index for index in range(len(CLASSES))}
        return DatasetInfo(
            name="ade20k",
            version="2016",
            classes=CLASSES,
            palette=make_palette(len(CLASSES)),
            mask_values=values,
        )

    def sample(self, entry: Entry, split: str) -> Sample:
        return Sample(entry.name, split, entry.image, entry.labels[0])
