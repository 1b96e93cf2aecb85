"""Finds out which layout a user's folder has."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segcore.data.objects import compact_ids
from segcore.data.sample import DatasetInfo, Sample
from segcore.datasets.base import DataSource
from segcore.datasets.cityscapes_folder import CityscapesFolder, image_folder
from segcore.datasets.coco import CocoFolder
from segcore.datasets.coco_json import find_annotations, read_annotations
from segcore.datasets.coco_panoptic import CocoPanopticFolder
from segcore.datasets.id_folder import IdFolder
from segcore.datasets.id_png import read_ids
from segcore.datasets.layout import FOLDERS, Key, find, roots
from segcore.datasets.mask_folder import MaskFolder, paired_masks
from segcore.datasets.object_files import ObjectFileFolder, find_collections
from segcore.datasets.palette import CLASS_LISTS
from segcore.errors import DataError, OptionError

LAYOUTS = ("masks", "ids", "objects", "coco", "cityscapes")
SEEN = 64
ONE_PIECE = 0.9

WANTED = (
    "it needs images/ and masks/ with files of equal stems (or stems that differ by one suffix or "
    "prefix, as x.jpg and x_mask.png), images/ and instances/ (id maps), images/ and "
    "annotations.json (COCO, panoptic too), a folder with images/ and masks/ for each image, or "
    "leftImg8bit/ and gtFine/. Looked for "
    f"{', '.join(FOLDERS['images'])}; {', '.join(FOLDERS['masks'])}; "
    f"{', '.join(FOLDERS['instances'])}"
)


class Layout(Protocol):
    """A folder of one layout."""

    @property
    def keys(self) -> list[Key]:
        """Of each sample."""

    @property
    def files(self) -> list[Path]:
        """All that shards depend on; some may be missing."""

    def info(self, name: str) -> DatasetInfo:
        """What holds for every sample."""

    def samples(self, splits: Mapping[Key, str]) -> Iterator[Sample]:
        """Those with a split."""


def open_layout(path: Path, source: DataSource) -> Layout:
    """The layout of a folder, or the one that the option `layout` names.

    Raises:
        DataError: it has none that is known.
        OptionError: no layout has this name.
    """
    wanted = source.options.get("layout")
    if wanted not in (None, *LAYOUTS):
        raise OptionError(f"layout is {wanted!r}: use one of {', '.join(LAYOUTS)}")
    if not path.is_dir():
        raise DataError(f"data.path {path} is no folder: name the one that has your data")
    if wanted in (None, "cityscapes") and image_folder(path):
        return CityscapesFolder(path, source)
    if wanted in (None, "objects") and find_collections(path):
        return ObjectFileFolder(path, source)
    masked = bool(roots(path, "masks")) and wanted in (None, "masks", "ids")
    if wanted in (None, "coco") and (found := _open_coco(path, source, beside_masks=masked)):
        return found
    _check_images(path, masked=masked)
    if wanted in (None, "ids") and (ids := _open_ids(path, source, sure=wanted == "ids")):
        return ids
    if not masked:
        raise DataError(f"{path} has neither masks/ nor annotations.json: {WANTED}")
    return MaskFolder(path, source, paired_masks(path, WANTED))


def _check_images(path: Path, *, masked: bool) -> None:
    """Refuse a folder without images.

    Raises:
        DataError: naming what is there.
    """
    if not roots(path, "images"):
        raise DataError(f"{path} has no images/: {WANTED}")
    labelled = masked or roots(path, "instances")
    if labelled and not find(path, "images"):
        raise DataError(f"{path / 'images'} holds no image: {WANTED}")


def _open_coco(path: Path, source: DataSource, *, beside_masks: bool) -> Layout | None:
    """The folder with its annotation files; beside masks, only panoptic ones count."""
    files = find_annotations(path)
    if not files:
        return None
    try:
        content = read_annotations(path, files)
    except DataError:
        if beside_masks:
            return None
        raise
    if content.panoptic:
        return CocoPanopticFolder(content, source)
    if beside_masks:
        return None
    if not any(image.file.is_file() for image in content.images):
        raise DataError(f"{path / 'images'} holds no image of {files[0].name}: {WANTED}")
    return CocoFolder(content, source)


def _open_ids(path: Path, source: DataSource, *, sure: bool) -> IdFolder | None:
    """The folder with its id maps, if there are any: in instances/, or in masks/ of 16 bits."""
    if find(path, "instances"):
        masks = paired_masks(path, WANTED) if roots(path, "masks") else {}
        return IdFolder(path, source, paired_masks(path, WANTED, "instances"), masks)
    if not roots(path, "masks"):
        return None
    found = find(path, "masks")
    files = [file for several in found.values() for file in several]
    listed = any((path / f"{name}.txt").is_file() for name in CLASS_LISTS)
    named = source.classes is not None or listed
    if not files or not (sure or _hold_ids(files, named=named)):
        return None
    fix = "nothing, or overrule it: data.options.layout: masks"
    assumption = ("16-bit masks", "each value is taken for one object", fix)
    assumptions = () if sure else (assumption,)
    return IdFolder(path, source, paired_masks(path, WANTED), {}, assumptions)


def _hold_ids(files: list[Path], *, named: bool) -> bool:
    """Whether masks of 16 bits hold ids of objects, not class indices.

    They do if a value is above 255; else, where no classes are named, if values run from 1 without
    a gap to ends that differ among the masks, and hardly any has several pieces.
    """
    if not all(map(_is_deep, files)):
        return False
    try:
        maps = [read_ids(file) for file in files[:: max(1, len(files) // SEEN)]]
    except DataError:
        return False
    if any(ids.max(initial=0) > 255 for ids in maps):
        return True
    ranked = [compact_ids(ids) for ids in maps]
    ends = {found.size for found, _ in ranked}
    whole = all((found == np.arange(1, found.size + 1)).all() for found, _ in ranked)
    return not named and whole and len(ends) > 1 and _pieces(ranked) >= ONE_PIECE


def _is_deep(file: Path) -> bool:
    """Whether an image has one channel of more than 8 bits; only its head is read."""
    try:
        with Image.open(file) as image:
            return image.mode.startswith("I")
    except OSError:
        return False


def _pieces(ranked: list[tuple[NDArray[np.int64], NDArray[np.int32]]]) -> float:
    """Share of the objects that are of one piece."""
    from scipy.ndimage import find_objects, label

    pieces = [
        int(label(ranks[window] == place, np.ones((3, 3)))[1])
        for _, ranks in ranked
        for place, window in enumerate(find_objects(ranks), start=1)
        if window is not None
    ]
    return pieces.count(1) / max(len(pieces), 1)
