"""A folder of images and masks of equal stems: which classes it has, and its samples."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from segcore.data.labels import LabelError, read_labels
from segcore.data.sample import DatasetInfo, Sample
from segcore.datasets.base import DataSource
from segcore.datasets.layout import Key, find, pair, roots
from segcore.datasets.palette import VOC_BORDER, Color, find_classes, make_palette
from segcore.errors import DataError, OptionError


class MaskFolder:
    """Images and masks of `path`.

    Args:
        path: the folder.
        source: classes, ignored index and the option `mask_values`.
        masks: masks by the keys of their images.
        images: by their keys; None: those of images/.
    """

    def __init__(
        self,
        path: Path,
        source: DataSource,
        masks: Mapping[Key, list[Path]],
        images: Mapping[Key, list[Path]] | None = None,
    ) -> None:
        self.path = path
        self.source = source
        self.masks = masks
        self.images = find(path, "images") if images is None else images

    @property
    def keys(self) -> list[Key]:
        """Of images and masks, in the order of their stems."""
        return sorted({*self.images, *self.masks}, key=lambda key: (key[1], key[0]))

    @property
    def files(self) -> list[Path]:
        """Images and masks."""
        return [f for kind in (self.images, self.masks) for found in kind.values() for f in found]

    def samples(self, splits: Mapping[Key, str]) -> Iterator[Sample]:
        """Sorted by stem. An image without a mask, or a mask without an image, is yielded too."""
        for _, sample in self.pairs(splits):
            yield sample

    def pairs(
        self, splits: Mapping[Key, str], further: Iterable[Key] = ()
    ) -> Iterator[tuple[Key, Sample]]:
        """As `samples`, with keys, those further ones included that have neither image nor mask."""
        keys = sorted({*self.keys, *further}, key=lambda key: (key[1], key[0]))
        stems = Counter(stem for _, stem in keys)
        for key in filter(splits.__contains__, keys):
            place, stem = key
            name = f"{place}-{stem}" if place and stems[stem] > 1 else stem
            found: list[Path | None] = [*self.masks.get(key, [])] or [None]
            for image in self.images.get(key, [self._image_folder / place / f"{stem}.png"]):
                for mask in found:
                    yield key, Sample(name.replace("/", "-"), splits[key], image, mask)

    @property
    def _image_folder(self) -> Path:
        """Where an image is said to be missing."""
        found = [folder for place, folder in roots(self.path, "images") if not place]
        return found[0] if found else self.path / "images"

    def info(self, name: str) -> DatasetInfo:
        """The classes that are named, or as many as the masks have.

        Raises:
            DataError: names and colours differ in number, or there are too many.
        """
        names, colors = self.classes
        values = _mask_values(self.source.options.get("mask_values", {}))
        assumed = () if values or colors or len(names) not in (0, 2) else self._binary
        if assumed:
            values = {0: 0, assumed[1]: 1}
        if not names:
            names = tuple(f"class_{index}" for index in range(self._count_classes(values)))
        if len(names) > 256:
            raise DataError(f"{self.path} has {len(names)} classes: masks of 8 bits hold 256")
        return DatasetInfo(
            name=name,
            version="1",
            classes=names,
            palette=colors or make_palette(len(names)),
            ignore_index=self.source.ignore_index,
            mask_values=values,
            mask_colors=self._colors(colors),
            assumptions=tuple(_assumption(value) for value in assumed[1:]),
        )

    def _colors(self, colors: tuple[Color, ...]) -> dict[Color, int]:
        """Class index of each colour; with Pascal's list, VOC's border is ignored."""
        border = {VOC_BORDER: self.source.ignore_index} if colors and self._is_pascal else {}
        return border | {color: index for index, color in enumerate(colors)}

    @property
    def _is_pascal(self) -> bool:
        listed = (self.path / "classes.txt").is_file()
        return not listed and (self.path / "labelmap.txt").is_file()

    @cached_property
    def classes(self) -> tuple[tuple[str, ...], tuple[Color, ...]]:
        """Names and colours that are given; empty where none are."""
        names, colors = find_classes(self.path)
        if self.source.classes is None:
            return names, colors
        if colors and len(colors) != len(self.source.classes):
            raise DataError(
                f"data.classes has {len(self.source.classes)} names, {self.path / 'classes.txt'} "
                f"{len(colors)} colours: make them agree"
            )
        return self.source.classes, colors

    def _count_classes(self, values: Mapping[int, int]) -> int:
        """How many classes unnamed masks have: up to the largest index below which most occur."""
        if values:
            return max({*values.values()} - {self.source.ignore_index}, default=0) + 1
        ordered = enumerate(sorted(self._seen - {self.source.ignore_index}), start=1)
        return max((index + 1 for rank, index in ordered if 2 * rank > index), default=1)

    @property
    def _binary(self) -> tuple[int, ...]:
        """The values 0 and v where all masks hold only these and v is more than 1; else empty."""
        seen = tuple(sorted(self._seen))
        return seen if len(seen) == 2 and seen[0] == 0 and seen[1] > 1 else ()

    @cached_property
    def _seen(self) -> set[int]:
        """Values of all masks; where classes are named, of as many masks as hold three values."""
        enough = 3 if self.classes[0] else 257
        files = [file for found in self.masks.values() for file in found]
        seen: set[int] = set()
        with ThreadPoolExecutor(8) as pool:
            for start in range(0, len(files), 64):
                seen.update(*pool.map(_indices, files[start : start + 64]))
                if len(seen) >= enough:
                    break
        return seen


def paired_masks(path: Path, wrong: str, kind: str = "masks") -> dict[Key, list[Path]]:
    """Files of a kind by the keys of their images.

    Args:
        path: the folder.
        wrong: what to say where none belongs to an image.
        kind: "masks" or "instances".

    Raises:
        DataError: no image has one.
    """
    images = find(path, "images")
    masks = pair(images, find(path, kind))
    if masks and not images.keys() & masks.keys():
        image, mask = next(iter(images.values()))[0], next(iter(masks.values()))[0]
        raise DataError(
            f"no image of {path} has a mask: {image.relative_to(path)} and "
            f"{mask.relative_to(path)} are of different stems. {path.name}: {wrong}"
        )
    return masks


def _assumption(value: int) -> tuple[str, str, str]:
    return (
        f"binary mask 0/{value}",
        f"{value} is taken for class 1",
        f"nothing, or overrule it: data.options.mask_values: {{0: 0, {value}: 255}} ignores it",
    )


def _indices(file: Path) -> set[int]:
    """Values of an index mask; none if it cannot be read (validation says why)."""
    info = DatasetInfo(name="", version="", classes=(), palette=())
    try:
        mask = read_labels(file.read_bytes(), info)
    except (OSError, LabelError):
        return set()
    return set(np.flatnonzero(np.bincount(mask.ravel())).tolist())


def _mask_values(option: Any) -> dict[int, int]:
    try:
        values = {int(value): int(index) for value, index in dict(option).items()}
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"mask_values is {option!r}: map pixel values to class indices, e.g. {{0: 0, 255: 1}}"
        ) from error
    if any(not 0 <= number <= 255 for pair in values.items() for number in pair):
        raise OptionError(f"mask_values is {option!r}: all numbers must lie in 0..255")
    return values
