"""COCO annotations of a user's folder: polygons and run-length encoded masks, crowds.

The semantic mask of an image is painted from its annotations, the largest first, over a
background class.

Reference: Lin et al. 2014, arXiv:1405.0312; its data format.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segcore.data.codec import encode_mask
from segcore.data.objects import instance_of, paint_classes
from segcore.data.sample import BACKGROUND, DatasetInfo, Flaw, Instance, Objects, Sample, tasks_of
from segcore.datasets.base import DataSource
from segcore.datasets.coco_json import CocoContent, CocoImage
from segcore.datasets.layout import Key
from segcore.datasets.palette import make_palette
from segcore.datasets.polygons import SegmentationError, reaches_outside, read_segmentation
from segcore.errors import DataError


class CocoFolder:
    """Images with the annotations of some JSON files."""

    def __init__(self, content: CocoContent, source: DataSource) -> None:
        self.content = content
        self.source = source
        self.keys = content.keys
        self.files = [*content.files, *(image.file for image in content.images)]

    @property
    def _index(self) -> dict[int, int]:
        """Category id -> class index; 0 is the background."""
        names = {number: c["name"] for number, c in self.content.categories.items()}
        named = [number for number in sorted(names) if names[number].lower() == BACKGROUND]
        others = [number for number in sorted(names) if number not in named]
        return dict.fromkeys(named, 0) | {c: i for i, c in enumerate(others, start=1)}

    def info(self, name: str) -> DatasetInfo:
        """Background, then the categories by their ids.

        Raises:
            DataError: `source.classes` names another number of classes.
        """
        by_index = {i: str(self.content.categories[c]["name"]) for c, i in self._index.items()}
        by_index.setdefault(0, BACKGROUND)
        found = tuple(by_index[index] for index in sorted(by_index))
        if self.source.classes is not None and len(self.source.classes) != len(found):
            raise DataError(
                f"data.classes has {len(self.source.classes)} names, the annotations of "
                f"{self.content.path} {len(found)} with the background: {', '.join(found)}"
            )
        things = tuple(index > 0 for index in range(len(found)))
        return DatasetInfo(
            name=name,
            version="1",
            classes=self.source.classes or found,
            palette=make_palette(len(found)),
            ignore_index=self.source.ignore_index,
            tasks=tasks_of(found, things, instances=True),
            things=things,
            assumptions=self.content.assumptions,
        )

    def samples(self, splits: Mapping[Key, str]) -> Iterator[Sample]:
        """One for each image with a split."""
        index = self._index
        for image in self.content.images:
            if image.key in splits:
                twice = self.content.twice[image.listing]
                objects = CocoObjects(image, index, twice)
                yield Sample(image.id, splits[image.key], image.file, objects=objects)


@dataclass(frozen=True)
class CocoObjects:
    """The objects of one image of a COCO annotation file.

    Args:
        image: with its annotations.
        index: category id -> class index.
        twice: annotation ids that occur more than once in the file.
    """

    image: CocoImage
    index: Mapping[int, int]
    twice: frozenset[int]

    @property
    def file(self) -> Path:
        """The annotation file."""
        return self.image.listing

    def read(self) -> Objects:
        """Rasterise all annotations."""
        instances: list[Instance] = []
        flaws: list[Flaw] = []
        for annotation in self.image.annotations:
            try:
                instances.append(self._read(annotation))
            except SegmentationError as error:
                fault = (error.kind, error.value, error.fix, error.severity)
                flaws.append(self._flaw(annotation, *fault))
                continue
            if beyond := reaches_outside(annotation["segmentation"], self.image.size):
                fix = "nothing: it is cut off at the edge"
                what = "object partly outside the picture"
                flaws.append(self._flaw(annotation, what, beyond, fix, "warning"))
        mask = encode_mask(paint_classes(instances, self.image.size))
        return Objects(tuple(instances), mask, tuple(flaws))

    def _flaw(
        self, annotation: Mapping[str, Any], fault: str, value: str, fix: str, severity: str
    ) -> Flaw:
        named = f"annotation {annotation.get('id')} of {self.image.file.name}: {value}"
        return Flaw(str(self.file), fault, named, fix, severity)

    def _read(self, annotation: Mapping[str, Any]) -> Instance:
        """One annotation.

        Raises:
            SegmentationError: it shows no object of a class.
        """
        number, category = annotation.get("id"), annotation.get("category_id")
        if number in self.twice:
            fix = "give each annotation an id of its own"
            raise SegmentationError("duplicate object id", str(number), fix)
        index = self.index.get(category) if isinstance(category, int) else None
        if index is None:
            known = ", ".join(map(str, sorted(self.index)))
            fix = f"use one of {known}, or add it to categories"
            raise SegmentationError("class id out of range", f"category_id {category}", fix)
        window, corner = read_segmentation(annotation.get("segmentation"), self.image.size)
        crowd = bool(annotation.get("iscrowd", 0))
        instance = instance_of(window, index, crowd, corner=corner, size=self.image.size)
        if instance is None:
            raise SegmentationError("empty object", "no pixel", "draw it, or remove it")
        return instance
