"""COCO 2017: everyday scenes with 80 things; as objects, as class maps with stuff, as panoptic.

References: Lin et al. 2014, arXiv:1405.0312; Caesar et al. 2018, arXiv:1612.03716 (COCO-Stuff);
Kirillov et al. 2019, arXiv:1801.00868 (panoptic). SHA-1 as GluonCV's. Annotation files are
read whole into memory.
"""

from collections.abc import Mapping
from pathlib import Path

from segcore.data.sample import BACKGROUND, DatasetInfo, Sample, tasks_of
from segcore.datasets.archive import Archive
from segcore.datasets.coco import CocoObjects
from segcore.datasets.coco2017_classes import PANOPTIC_STUFF, STUFF, THINGS
from segcore.datasets.coco_json import CocoContent, read_annotations
from segcore.datasets.coco_panoptic import PanopticObjects, find_pngs
from segcore.datasets.palette import make_palette
from segcore.datasets.publication import Publication, tail
from segcore.datasets.published import Entry, PublishedDataset
from segcore.errors import DataError

PAGE = "https://cocodataset.org/#download"
COUNTS = {"train": 118_287, "val": 5_000}
ROLES = {"train": "train", "val": "test"}
VOID = 255

IMAGES = tuple(
    Archive(
        file=f"{split}2017.zip",
        url=f"http://images.cocodataset.org/zips/{split}2017.zip",
        select=tail(rf"{split}2017/\d+\.jpg"),
        packed=f"sha1:{digest}",
    )
    for split, digest in (
        ("train", "10ad623668ab00c62c096f0ed636d6aff41faca5"),
        ("val", "4950dc9d00dbe1c933ee0170f5797584351d2a41"),
    )
)

INSTANCES = Publication(
    name="coco_instances",
    page=PAGE,
    archives=(
        *IMAGES,
        Archive(
            file="annotations_trainval2017.zip",
            url="http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
            select=tail(r"annotations/instances_(?:train|val)2017\.json"),
            packed="sha1:8551ee4bb5860311e79dace7e79cb91e432e78b3",
        ),
    ),
    counts=COUNTS,
    roles=ROLES,
    marker="annotations/instances_val2017.json",
    layout="{train,val}2017/*.jpg and annotations/instances_{train,val}2017.json",
)
PANOPTIC = Publication(
    name="coco_panoptic",
    page=PAGE,
    archives=(
        *IMAGES,
        Archive(
            file="panoptic_annotations_trainval2017.zip",
            url="http://images.cocodataset.org/annotations/panoptic_annotations_trainval2017.zip",
            select=tail(r"annotations/panoptic_(?:train|val)2017\.(?:json|zip)"),
        ),
    ),
    counts=COUNTS,
    roles=ROLES,
    marker="annotations/panoptic_val2017.json",
    layout=(
        "{train,val}2017/*.jpg, annotations/panoptic_{train,val}2017.json and "
        "annotations/panoptic_{train,val}2017/*.png"
    ),
)


_find_map = tail(r"(?:train|val)2017/\d+\.png")


def _select_map(name: str) -> str | None:
    found = _find_map(name)
    return None if found is None else f"stuffthingmaps/{found}"


MAPS = ("stuffthingmaps", "annotations")  # the second is where COCO-Stuff's README unpacks them
STUFF_MAPS = Publication(
    name="coco_stuff",
    page="https://github.com/nightrome/cocostuff",
    archives=(
        *IMAGES,
        Archive(
            file="stuffthingmaps_trainval2017.zip",
            url=(
                "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/"
                "stuffthingmaps_trainval2017.zip"
            ),
            select=_select_map,
        ),
    ),
    counts=COUNTS,
    roles=ROLES,
    marker="",
    layout="{train,val}2017/*.jpg and stuffthingmaps/{train,val}2017/*.png",
)


def _listed(root: Path, kind: str, known: Mapping[int, str]) -> CocoContent:
    """The annotations of both splits.

    Raises:
        DataError: a file is missing, or its categories are not those that were published.
    """
    files = [root / "annotations" / f"{kind}_{split}2017.json" for split in ROLES]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise DataError(f"{missing} is missing: put the publisher's there")
    content = read_annotations(root, files)
    found = {number: str(c["name"]) for number, c in content.categories.items()}
    if found != dict(known):
        wrong = sorted(set(found.items()) ^ set(known.items()))
        raise DataError(f"{files[0]} has other categories than COCO 2017, first {wrong[0]}")
    return content


class CocoInstances(PublishedDataset):
    """COCO 2017 objects, semantic and instances: 118,287 training images, 80 things.

    Test is the published validation set (5,000). Class maps are painted from the objects.
    """

    @property
    def publication(self) -> Publication:
        return INSTANCES

    def list_entries(self, root: Path) -> list[Entry]:
        """In the order of the annotation files."""
        content = _listed(root, "instances", THINGS)
        return [
            Entry(
                split=image.key[0],
                name=image.id,
                image=image.file,
                labels=(),
                facts=(image, content.twice[image.listing]),
            )
            for image in content.images
        ]

    def describe(self) -> DatasetInfo:
        classes = (BACKGROUND, *THINGS.values())
        things = (False,) + (True,) * len(THINGS)
        return DatasetInfo(
            name="coco_instances",
            version="2017",
            classes=classes,
            palette=make_palette(len(classes)),
            tasks=tasks_of(classes, things, instances=True),
            things=things,
        )

    def sample(self, entry: Entry, split: str) -> Sample:
        image, twice = entry.facts
        objects = CocoObjects(image, _INSTANCE_INDEX, twice)
        return Sample(entry.name, split, entry.image, objects=objects)


class CocoStuff(PublishedDataset):
    """COCO-Stuff 2017, semantic: 118,287 training images, 80 things and 91 kinds of stuff.

    Test is the published validation set (5,000). Maps hold ids less one; 255 counts nowhere.
    """

    @property
    def publication(self) -> Publication:
        return STUFF_MAPS

    def list_entries(self, root: Path) -> list[Entry]:
        """By split and name."""
        maps = next((root / name for name in MAPS if (root / name / "val2017").is_dir()), root)
        entries = []
        for split in ROLES:
            places = [root / f"{split}2017", root / "images" / f"{split}2017"]
            images = next((place for place in places if place.is_dir()), places[0])
            for image in sorted(images.glob("*.jpg")):
                labels = (maps / f"{split}2017" / f"{image.stem}.png",)
                entries.append(Entry(split, image.stem, image, labels))
        return entries

    def describe(self) -> DatasetInfo:
        known = THINGS | STUFF
        return DatasetInfo(
            name="coco_stuff",
            version="2017",
            classes=tuple(known.values()),
            palette=make_palette(len(known)),
            ignore_index=VOID,
            things=tuple(number in THINGS for number in known),
            mask_values={number - 1: i for i, number in enumerate(known)} | {VOID: VOID},
        )

    def sample(self, entry: Entry, split: str) -> Sample:
        return Sample(entry.name, split, entry.image, entry.labels[0])


class CocoPanoptic(PublishedDataset):
    """COCO 2017 panoptic: 118,287 training images, 80 things and 53 kinds of stuff.

    Test is the published validation set (5,000). Semantic and instance models learn from it too.
    """

    @property
    def publication(self) -> Publication:
        return PANOPTIC

    def list_entries(self, root: Path) -> list[Entry]:
        """In the order of the annotation files."""
        content = _listed(root, "panoptic", _PANOPTIC)
        return [
            Entry(
                split=image.key[0],
                name=image.id,
                image=image.file,
                labels=() if png is None else (png,),
                facts=(image,),
            )
            for image, png in zip(content.images, find_pngs(content), strict=True)
        ]

    def describe(self) -> DatasetInfo:
        classes = tuple(_PANOPTIC.values())
        things = tuple(number in THINGS for number in _PANOPTIC)
        return DatasetInfo(
            name="coco_panoptic",
            version="2017",
            classes=classes,
            palette=make_palette(len(classes)),
            ignore_index=VOID,
            tasks=tasks_of(classes, things, instances=True),
            things=things,
        )

    def sample(self, entry: Entry, split: str) -> Sample:
        things = self.described.things
        png = entry.labels[0] if entry.labels else None
        objects = (
            None
            if png is None
            else PanopticObjects(png, entry.facts[0], _PANOPTIC_INDEX, things, VOID)
        )
        return Sample(entry.name, split, entry.image, objects=objects)


_PANOPTIC = THINGS | PANOPTIC_STUFF
_PANOPTIC_INDEX = {number: index for index, number in enumerate(_PANOPTIC)}
_INSTANCE_INDEX = {number: index for index, number in enumerate(THINGS, start=1)}
