"""COCO annotations of a user's folder: polygons and run-length encoded masks.

The semantic mask of an image is painted from its annotations, the largest first, over a
background class.

Reference: Lin et al. 2014, arXiv:1405.0312; its data format.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segcore.data.codec import encode_mask
from segcore.data.encode import instance_of
from segcore.data.sample import SPLITS, DatasetInfo, Instance, Sample
from segcore.datasets.base import DataSource
from segcore.datasets.palette import make_palette
from segcore.errors import DataError
from segcore.inference import rle

BACKGROUND = "background"


def find_annotations(path: Path) -> list[Path]:
    """The annotation files of a folder: one for all, or one a split."""
    whole = path / "annotations.json"
    if whole.is_file():
        return [whole]
    files = (path / "annotations" / f"{split}.json" for split in SPLITS)
    return [file for file in files if file.is_file()]


@dataclass(frozen=True)
class CocoImage:
    """One image of an annotation file.

    Args:
        file: the picture.
        split: that its annotation file names; "" if that is of all splits.
        size: (height, width).
        annotations: of this image.
    """

    file: Path
    split: str
    size: tuple[int, int]
    annotations: tuple[Mapping[str, Any], ...]


class CocoFolder:
    """Images of `path/images` with the annotations of some JSON files."""

    def __init__(self, path: Path, files: list[Path]) -> None:
        self.path = path
        self.categories: dict[int, str] = {}
        self.images: list[CocoImage] = []
        for file in files:
            try:
                self._read(file)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{file} is no COCO annotation file ({type(error).__name__}: {error}): it "
                    "needs images, annotations and categories"
                ) from error

    def _read(self, file: Path) -> None:
        content = json.loads(file.read_text())
        split = file.stem if file.parent.name == "annotations" else ""
        self.categories |= {int(c["id"]): str(c["name"]) for c in content["categories"]}
        of_image: dict[int, list[Mapping[str, Any]]] = {}
        for annotation in content["annotations"]:
            of_image.setdefault(annotation["image_id"], []).append(annotation)
        for image in content["images"]:
            found = of_image.get(image["id"], [])
            name = str(image["file_name"]).removeprefix("images/")
            placed = self.path / "images" / split / name
            self.images.append(
                CocoImage(
                    file=placed if placed.is_file() else self.path / "images" / name,
                    split=split,
                    size=(int(image["height"]), int(image["width"])),
                    annotations=tuple(found),
                )
            )

    @property
    def keys(self) -> list[tuple[str, str]]:
        """(split or "", stem) of each image."""
        return [(image.split or self._place(image.file), image.file.stem) for image in self.images]

    def _place(self, file: Path) -> str:
        """The split that the image's subfolder names."""
        return file.parent.name if file.parent.name in SPLITS else ""

    @property
    def _index(self) -> dict[int, int]:
        """Category id -> class index; 0 is the background."""
        ordered = sorted(self.categories)
        named = [c for c in ordered if self.categories[c].lower() == BACKGROUND]
        others = [c for c in ordered if c not in named]
        return dict.fromkeys(named, 0) | {c: i for i, c in enumerate(others, start=1)}

    def info(self, name: str, source: DataSource) -> DatasetInfo:
        """Background, then the categories by their ids.

        Raises:
            DataError: `source.classes` names another number of classes.
        """
        by_index = {index: self.categories[c] for c, index in self._index.items()}
        by_index.setdefault(0, BACKGROUND)
        found = tuple(by_index[index] for index in sorted(by_index))
        if source.classes is not None and len(source.classes) != len(found):
            raise DataError(
                f"data.classes has {len(source.classes)} names, the annotations of {self.path} "
                f"{len(found)} with the background: {', '.join(found)}"
            )
        return DatasetInfo(
            name=name,
            version="1",
            classes=source.classes or found,
            palette=make_palette(len(found)),
            ignore_index=source.ignore_index,
            tasks=("semantic", "instance"),
            things=tuple(index > 0 for index in range(len(found))),
        )

    def samples(self, splits: Mapping[tuple[str, str], str]) -> Iterator[Sample]:
        """One for each image with a split.

        Raises:
            DataError: an annotation cannot be read.
        """
        for image, key in zip(self.images, self.keys, strict=True):
            if key in splits:
                mask, instances = self._paint(image)
                yield Sample(
                    id=image.file.stem,
                    split=splits[key],
                    image=image.file,
                    mask=encode_mask(mask),
                    instances=instances,
                )

    def _paint(self, image: CocoImage) -> tuple[NDArray[np.uint8], tuple[Instance, ...]]:
        mask = np.zeros(image.size, dtype=np.uint8)
        drawn: list[tuple[NDArray[np.bool_], Instance]] = []
        for annotation in image.annotations:
            try:
                shape = read_segmentation(annotation["segmentation"], image.size)
                index = self._index[int(annotation["category_id"])]
            except (KeyError, ValueError, TypeError, DataError) as error:
                raise DataError(
                    f"annotation {annotation.get('id')} of {image.file}: "
                    f"{type(error).__name__}: {error}. Correct or remove it"
                ) from error
            instance = instance_of(shape, index, bool(annotation.get("iscrowd", 0)))
            if instance is not None:
                drawn.append((shape, instance))
        for shape, instance in sorted(drawn, key=lambda pair: -pair[1].area):
            mask[shape] = instance.category
        return mask, tuple(instance for _, instance in drawn)


def read_segmentation(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Rasterise polygons, or decode run lengths (a list, or compressed).

    Args:
        segmentation: [[x, y, x, y, ...], ...] in pixels, or {"counts": ..., "size": [H, W]}.
        size: (height, width) of the image.

    Returns:
        bool [H, W].

    Raises:
        DataError: the run lengths are damaged or of another size.
        ValueError: a polygon has fewer than three corners.
    """
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        if tuple(segmentation["size"]) != size:
            raise DataError(f"run lengths of size {segmentation['size']}, image {list(size)}")
        return rle.decode(counts, *size) if isinstance(counts, str) else _runs(counts, size)
    mask = np.zeros(size, dtype=bool)
    for polygon in segmentation:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon of {len(polygon)} numbers: it needs 6 or more, even")
        mask |= fill_polygon(np.asarray(polygon, dtype=np.float64).reshape(-1, 2), size)
    return mask


def fill_polygon(corners: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels whose centre lies inside a polygon, by the even-odd rule.

    Args:
        corners: [V, 2] of (x, y) in pixels; pixel i covers [i, i + 1), its centre is i + 0.5.
        size: (height, width) of the image.

    Returns:
        bool [H, W].
    """
    height, width = size
    toggles = np.zeros((height, width + 1), dtype=np.int64)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        top, bottom = min(y0, y1), max(y0, y1)
        first, last = np.clip(np.ceil([top - 0.5, bottom - 0.5]), 0, height).astype(int)
        rows = np.arange(first, last)
        if rows.size:
            crossing = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            columns = np.clip(np.ceil(crossing - 0.5), 0, width).astype(int)
            np.add.at(toggles, (rows, columns), 1)
    inside: NDArray[np.bool_] = toggles.cumsum(axis=1)[:, :width] % 2 == 1
    return inside


def _runs(counts: list[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    if sum(counts) != size[0] * size[1]:
        raise DataError(f"run lengths cover {sum(counts)} pixels of {size[0] * size[1]}")
    ones = np.arange(len(counts)) % 2 == 1
    return np.repeat(ones, counts).reshape(size, order="F")
