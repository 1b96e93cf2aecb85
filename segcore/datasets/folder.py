"""Your own data: a folder with `images/` and `masks/` of equal stems, or COCO annotations.

Masks are one-channel or palette PNGs of class indices, or pictures whose colours `classes.txt`
names. Splits are given by lists, by subfolders, or drawn by a hash of the names.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from segcore.data.atomic import write_file
from segcore.data.labels import LabelError, read_labels
from segcore.data.sample import SPLITS, DatasetInfo, Sample
from segcore.datasets.archive import hash_file
from segcore.datasets.base import DataSource, Progress, silent
from segcore.datasets.coco import CocoFolder, find_annotations
from segcore.datasets.layout import FOLDERS, Key, assign, find, pair, read_lists, roots
from segcore.datasets.palette import make_palette, read_classes
from segcore.errors import DataError, OptionError

OPTIONS = ("mask_values", "title")
LAYOUT = (
    "it needs images/ and masks/ with files of equal stems (or stems that differ by one suffix, as "
    "x.jpg and x_mask.png), or images/ and annotations.json (COCO). Looked for "
    f"{', '.join(FOLDERS['images'])} and {', '.join(FOLDERS['masks'])}"
)


class Folder:
    """A user's folder; it is read in place, nothing is copied.

    Layout of `source.path`:
        images/, masks/: files of equal stems, or with one suffix on every mask's stem (x_mask.png)
            or image's; or train/, val/, test/, unlabelled/ in each, or around both. Other names
            that folders may have: `layout.FOLDERS`.
        annotations.json or annotations/<split>.json: COCO, instead of masks/.
        classes.txt: a name a line, in index order; with "r g b" or "#rrggbb" after it, masks may
            be pictures in these colours.
        train.txt, val.txt, test.txt, unlabelled.txt: a stem or file name a line.
    """

    def __init__(self, source: DataSource) -> None:
        unknown = sorted(set(source.options) - set(OPTIONS))
        if unknown:
            raise OptionError(f"folder has no option {unknown[0]!r}. Known: {', '.join(OPTIONS)}")
        if source.path is None:
            raise DataError("data.name is folder but data.path is not set: name your folder there")
        self.source = source
        self.path = Path(source.path)

    def download(self, progress: Progress = silent) -> None:
        """Write `source.raw/source.json`: path and sha256 of every file that shards depend on.

        Nothing is copied; the list changes when a file does, and with it what depends on it.
        """
        files = self._files()
        hashes: dict[str, str] = {}
        with ThreadPoolExecutor(8) as pool:
            for file, digest in zip(files, pool.map(hash_file, files), strict=True):
                hashes[file.relative_to(self.path).as_posix()] = digest
                progress("hash", len(hashes), len(files))
        content = {"path": str(self.path), "name": self.name, "files": hashes}
        write_file(self.source.raw / "source.json", json.dumps(content, indent=1).encode() + b"\n")

    @property
    def name(self) -> str:
        """The option `title`, else the folder's own name, as a registry takes it."""
        title = self.source.options.get("title")
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", str(title or self.path.resolve().name)).strip("._-")
        if title is not None and not name:
            raise OptionError(f"title is {title!r}: give it a letter or a digit")
        return name or "folder"

    def info(self) -> DatasetInfo:
        if self._coco is not None:
            return self._coco.info(self.name, self.source)
        names, colors = self._classes
        values = _mask_values(self.source.options.get("mask_values", {}))
        assumed = () if values or colors or len(names) not in (0, 2) else self._binary
        if assumed:
            values = {0: 0, assumed[1]: 1}
        if not names:
            names = tuple(f"class_{index}" for index in range(self._count_classes(values)))
        if len(names) > 256:
            raise DataError(f"{self.path} has {len(names)} classes: masks of 8 bits hold 256")
        return DatasetInfo(
            name=self.name,
            version="1",
            classes=names,
            palette=colors or make_palette(len(names)),
            ignore_index=self.source.ignore_index,
            mask_values=values,
            mask_colors={color: index for index, color in enumerate(colors)},
            assumptions=tuple(_assumption(value) for value in assumed[1:]),
        )

    def samples(self) -> Iterator[Sample]:
        """Sorted by stem. An image without a mask, or a mask without an image, is yielded too.

        Raises:
            DataError: the folder is missing or has another layout.
        """
        if self._coco is not None:
            yield from self._coco.samples(self._assign(self._coco.keys))
            return
        images, masks = self._images, self._masks
        keys = sorted({*images, *masks}, key=lambda key: (key[1], key[0]))
        splits = self._assign(keys)
        stems = Counter(stem for _, stem in keys)
        for key in filter(splits.__contains__, keys):
            place, stem = key
            name = f"{place}-{stem}" if place and stems[stem] > 1 else stem
            found = masks.get(key, [None])
            for image in images.get(key, [self._image_folder / place / f"{stem}.png"]):
                for mask in found:
                    yield Sample(
                        id=name.replace("/", "-"), split=splits[key], image=image, mask=mask
                    )

    def _assign(self, keys: list[Key]) -> dict[Key, str]:
        return assign(
            keys,
            read_lists(self.path),
            val_fraction=self.source.val_fraction,
            test_fraction=self.source.test_fraction,
            seed=self.source.seed,
        )

    @cached_property
    def _coco(self) -> CocoFolder | None:
        self._check()
        if roots(self.path, "masks"):
            return None
        return CocoFolder(self.path, find_annotations(self.path))

    @cached_property
    def _images(self) -> dict[Key, list[Path]]:
        return find(self.path, "images")

    @cached_property
    def _masks(self) -> dict[Key, list[Path]]:
        """By the key of their image."""
        masks = pair(self._images, find(self.path, "masks"))
        if masks and not self._images.keys() & masks.keys():
            image, mask = next(iter(self._images.values()))[0], next(iter(masks.values()))[0]
            raise DataError(
                f"no image of {self.path} has a mask: {image.relative_to(self.path)} and "
                f"{mask.relative_to(self.path)} are of different stems. {self.path.name}: {LAYOUT}"
            )
        return masks

    @property
    def _image_folder(self) -> Path:
        """Where an image is said to be missing."""
        found = [folder for place, folder in roots(self.path, "images") if not place]
        return found[0] if found else self.path / "images"

    def _check(self) -> None:
        if not self.path.is_dir():
            raise DataError(f"data.path {self.path} is no folder: name the one that has your data")
        if not roots(self.path, "images"):
            raise DataError(f"{self.path} has no images/: {LAYOUT}")
        if not roots(self.path, "masks") and not find_annotations(self.path):
            raise DataError(f"{self.path} has neither masks/ nor annotations.json: {LAYOUT}")
        if not find(self.path, "images"):
            raise DataError(f"{self.path / 'images'} holds no image: {LAYOUT}")

    def _files(self) -> list[Path]:
        self._check()
        texts = [self.path / f"{name}.txt" for name in ("classes", *SPLITS)]
        files = {text for text in texts if text.is_file()} | set(find_annotations(self.path))
        for kind in ("images", "masks"):
            files |= {file for found in find(self.path, kind).values() for file in found}
        return sorted(files)

    @cached_property
    def _classes(self) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
        names, colors = read_classes(self.path / "classes.txt")
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
        enough = 3 if self._classes[0] else 257
        files = [file for found in self._masks.values() for file in found]
        seen: set[int] = set()
        with ThreadPoolExecutor(8) as pool:
            for start in range(0, len(files), 64):
                seen.update(*pool.map(_indices, files[start : start + 64]))
                if len(seen) >= enough:
                    break
        return seen


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
