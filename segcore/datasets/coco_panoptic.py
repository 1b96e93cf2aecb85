"""COCO's panoptic format: PNGs whose colours are ids of segments, and a JSON with their classes.

The id of a pixel is R + 256 G + 256^2 B; 0 is void.

Reference: Kirillov et al. 2019, arXiv:1801.00868; COCO's data format.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segcore.data.codec import encode_mask
from segcore.data.objects import compact_ids, instances_of_ranks
from segcore.data.sample import DatasetInfo, Flaw, Objects, Sample, tasks_of
from segcore.datasets.base import DataSource
from segcore.datasets.coco_json import CocoContent, CocoImage, split_of
from segcore.datasets.id_png import read_ids
from segcore.datasets.layout import Key
from segcore.datasets.palette import make_palette
from segcore.errors import DataError


class CocoPanopticFolder:
    """Images with panoptic PNGs and JSON files.

    The PNGs lie in a folder with the name of their JSON file, beside it, or in panoptic/, masks/
    or annotations/, there perhaps by split.
    """

    def __init__(self, content: CocoContent, source: DataSource) -> None:
        self.content = content
        self.source = source
        self.keys = content.keys
        self.pngs = find_pngs(content)
        pictures = [image.file for image in content.images]
        self.files = [*content.files, *pictures, *filter(None, self.pngs)]

    @property
    def _index(self) -> dict[int, int]:
        """Category id -> class index."""
        return {number: index for index, number in enumerate(sorted(self.content.categories))}

    @property
    def _things(self) -> tuple[bool, ...]:
        ordered = sorted(self.content.categories)
        return tuple(bool(self.content.categories[c].get("isthing", 1)) for c in ordered)

    def info(self, name: str) -> DatasetInfo:
        """The categories by their ids; void is ignored.

        Raises:
            DataError: `source.classes` names another number of classes, or the ignored index is
                one of them or no value of a mask.
        """
        ordered = sorted(self.content.categories)
        found = tuple(str(self.content.categories[number]["name"]) for number in ordered)
        if self.source.classes is not None and len(self.source.classes) != len(found):
            raise DataError(
                f"data.classes has {len(self.source.classes)} names, the annotations of "
                f"{self.content.path} {len(found)}: {', '.join(found)}"
            )
        if not len(found) <= self.source.ignore_index <= 255:
            raise DataError(
                f"data.ignore_index is {self.source.ignore_index}: void needs one in "
                f"{len(found)}..255"
            )
        return DatasetInfo(
            name=name,
            version="1",
            classes=self.source.classes or found,
            palette=make_palette(len(found)),
            ignore_index=self.source.ignore_index,
            tasks=tasks_of(found, self._things, instances=any(self._things)),
            things=self._things,
            assumptions=self.content.assumptions,
        )

    def samples(self, splits: Mapping[Key, str]) -> Iterator[Sample]:
        """One for each image with a split."""
        index, things = self._index, self._things
        ignore = self.info("").ignore_index
        for image, png in zip(self.content.images, self.pngs, strict=True):
            if image.key in splits:
                objects = (
                    None if png is None else PanopticObjects(png, image, index, things, ignore)
                )
                yield Sample(image.id, splits[image.key], image.file, objects=objects)


def find_pngs(content: CocoContent) -> list[Path | None]:
    """The PNG of each image, where it is missed if nowhere; None if no annotation names one."""
    places = {file: _png_places(content.path, file) for file in content.files}
    return [_png(image, places[image.listing]) for image in content.images]


def _png_places(path: Path, file: Path) -> list[Path]:
    folders = [file.with_suffix(""), path / "panoptic", path / "masks", path / "annotations"]
    split = split_of(path, file)
    return [*(folder / split for folder in folders[1:] if split), *folders, file.parent]


def _png(image: CocoImage, places: list[Path]) -> Path | None:
    """The PNG of an image, where it is missed if nowhere; None if no annotation names one."""
    if not image.annotations:
        return None
    name = str(image.annotations[0].get("file_name", f"{image.key[1]}.png"))
    return next((p / name for p in places if (p / name).is_file()), places[0] / name)


@dataclass(frozen=True)
class PanopticObjects:
    """Things and mask of one panoptic PNG.

    Args:
        file: the PNG.
        image: with its annotation.
        index: category id -> class index.
        things: per class, whether it is a thing.
        ignore_index: of void pixels.
    """

    file: Path
    image: CocoImage
    index: Mapping[int, int]
    things: tuple[bool, ...]
    ignore_index: int

    def read(self) -> Objects:
        """Read the PNG and compare it with its segments."""
        flaws: list[Flaw] = []
        try:
            ids = read_ids(self.file)
        except DataError as error:
            fix = "replace it by an intact PNG of segment ids"
            return Objects(flaws=(Flaw(str(self.file), "unreadable objects", str(error), fix),))
        found, ranks = compact_ids(ids)
        segments = self._segments(flaws)
        classes = np.full(found.size + 1, self.ignore_index, dtype=np.uint8)
        crowds = [False] * found.size
        categories: list[int | None] = [None] * found.size
        for rank, number in enumerate(found.tolist()):
            segment = segments.pop(number, None)
            if segment is None:
                fix = "list it in segments_info, or make its pixels 0 (void)"
                self._flaw(flaws, "unknown segment id", str(number), fix)
            elif (index := self.index.get(segment.get("category_id", -1))) is None:
                known = ", ".join(map(str, sorted(self.index)))
                value = f"category_id {segment.get('category_id')} of segment {number}"
                self._flaw(flaws, "class id out of range", value, f"use one of {known}")
            else:
                classes[rank + 1] = index
                categories[rank] = index if self.things[index] else None
                crowds[rank] = bool(segment.get("iscrowd", 0))
        for number in segments:
            fix = "draw it, or remove it from segments_info"
            self._flaw(flaws, "empty object", f"segment {number}", fix)
        mask = encode_mask(classes[ranks])
        return Objects(instances_of_ranks(ranks, categories, crowds), mask, tuple(flaws))

    def _segments(self, flaws: list[Flaw]) -> dict[int, Mapping[str, Any]]:
        """The segments of the image by id."""
        listed = [s for a in self.image.annotations for s in a.get("segments_info", ())]
        numbers = Counter(segment.get("id") for segment in listed)
        for number, count in numbers.items():
            if count > 1:
                fix = "give each segment of the image an id of its own"
                self._flaw(flaws, "duplicate object id", f"segment {number}", fix)
        return {int(segment["id"]): segment for segment in listed if "id" in segment}

    def _flaw(self, flaws: list[Flaw], fault: str, value: str, fix: str) -> None:
        flaws.append(Flaw(str(self.file), fault, value, fix))
