"""Your own data: a folder with images and labels of one of many layouts, found out by itself.

Splits are given by lists, by subfolders, or drawn by a hash of the names.
"""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from segcore.data.atomic import write_file
from segcore.data.sample import SPLITS, DatasetInfo, Sample
from segcore.datasets.archive import hash_file
from segcore.datasets.base import DataSource, Progress, silent
from segcore.datasets.layout import assign, read_lists
from segcore.datasets.layouts import Layout, open_layout
from segcore.datasets.palette import CLASS_LISTS
from segcore.errors import DataError, OptionError

OPTIONS = ("layout", "mask_values", "things", "title")
VOC_LISTS = "ImageSets/Segmentation"


class Folder:
    """Your own images and masks, where they lie: nothing is copied.

    Layouts of `source.path`; what has objects beside class masks gives `instances` too:
        images/, masks/: files of equal stems, or with one suffix on every mask's stem (x_mask.png)
            or image's, or one prefix (img_1.png, mask_1.png); or train/, val/, test/, unlabelled/
            in each, or around both. Masks are one-channel or palette PNGs of class indices, or
            pictures whose colours `classes.txt` names. Other names that folders may have:
            `layout.FOLDERS`.
        images/, instances/, perhaps masks/: id maps of 16 bits, a value an object. Masks that are
            such id maps themselves are known by their values. VOC's folders are of this kind.
        annotations.json or annotations/<split>.json, or the names that COCO uses: COCO instances,
            or panoptic with PNGs in a folder of the same name or in panoptic/.
        ID/images/x.png, ID/masks/*.png: a folder an image, a mask file an object.
        leftImg8bit/SPLIT/CITY/x_leftImg8bit.png, gtFine/SPLIT/CITY/x_gtFine_labelIds.png (or
            labelTrainIds) and perhaps x_gtFine_instanceIds.png: as Cityscapes.
        classes.txt: a name a line, in index order; with "r g b" or "#rrggbb" after it, masks may
            be pictures in these colours.
        train.txt, val.txt, test.txt, unlabelled.txt: a stem or file name a line; also in
            ImageSets/Segmentation.

        labelmap.txt (lines "name:r,g,b::") or label_colors.txt (lines "r g b name"): the same, as
            other tools write it.

    Options (`source.options`): title (the dataset's name), mask_values (pixel value -> class
    index), layout ("masks", "ids", "objects", "coco" or "cityscapes", instead of what is found
    out), things (names of the classes that have objects in id maps).
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
        """Classes, and for which tasks there are labels.

        Raises:
            DataError: the folder is missing or has another layout.
        """
        return self._layout.info(self.name)

    def samples(self) -> Iterator[Sample]:
        """Sorted by stem. An image without a mask, or a mask without an image, is yielded too.

        Raises:
            DataError: the folder is missing or has another layout.
        """
        layout = self._layout
        lists = read_lists(self.path) | read_lists(self.path / VOC_LISTS)
        splits = assign(
            layout.keys,
            lists,
            val_fraction=self.source.val_fraction,
            test_fraction=self.source.test_fraction,
            seed=self.source.seed,
        )
        yield from layout.samples(splits)

    @cached_property
    def _layout(self) -> Layout:
        return open_layout(self.path, self.source)

    def _files(self) -> list[Path]:
        places = (self.path, self.path / VOC_LISTS)
        texts = [place / f"{name}.txt" for place in places for name in (*CLASS_LISTS, *SPLITS)]
        return sorted({file for file in (*texts, *self._layout.files) if file.is_file()})
