"""COCO's annotation files of a folder: which there are, of which split, and what they list.

Reference: Lin et al. 2014, arXiv:1405.0312; its data format.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segcore.data.sample import SPLITS
from segcore.datasets.layout import Key, roots
from segcore.errors import DataError

_SPLIT = re.compile(r"(?:^|[^a-z])(train|val|test|unlabelled)(?:id|idation)?(?:[^a-z]|$)")
_NAMES = re.compile(
    r"(annotations|_annotations\.coco|coco|instances|panoptic)([_-].*)?", re.IGNORECASE
)
_INSIDE = (*SPLITS, "valid", "annotations")


@dataclass(frozen=True)
class CocoImage:
    """One image of an annotation file.

    Args:
        file: the picture.
        key: (split that its place or its annotation file names, or "", name without suffix).
        size: (height, width).
        annotations: of this image.
        listing: the annotation file.
    """

    file: Path
    key: Key
    size: tuple[int, int]
    annotations: tuple[Mapping[str, Any], ...]
    listing: Path

    @property
    def id(self) -> str:
        """Of its sample."""
        return self.key[1].replace("/", "-")


@dataclass(frozen=True)
class CocoContent:
    """What the annotation files of a folder hold together.

    Args:
        path: the folder.
        files: the annotation files.
        images: of all files.
        categories: id -> as the file describes it.
        twice: by file, ids that several annotations have.
        stray: by file, how many annotations belong to no image that is listed.
    """

    path: Path
    files: tuple[Path, ...]
    images: tuple[CocoImage, ...]
    categories: Mapping[int, Mapping[str, Any]]
    twice: Mapping[Path, frozenset[int]]
    stray: Mapping[Path, int]

    @property
    def keys(self) -> list[Key]:
        """Of each image."""
        return [image.key for image in self.images]

    @property
    def panoptic(self) -> bool:
        """Whether annotations are panoptic: PNGs with their segments."""
        return any("segments_info" in a for image in self.images for a in image.annotations[:1])

    @property
    def assumptions(self) -> tuple[tuple[str, str, str], ...]:
        """Annotations of no image, as warnings."""
        fix = "list their images, or remove them"
        return tuple(
            ("annotations of no listed image", f"{count} in {file}", fix)
            for file, count in self.stray.items()
            if count
        )


def find_annotations(path: Path) -> list[Path]:
    """The annotation files of a folder: one for all, or one a split.

    `annotations.json`, else `annotations/<split>.json`, else files that begin with instances,
    panoptic (which are preferred), annotations, coco: in the folder, in annotations/ or in the
    folders of the splits.
    """
    whole = path / "annotations.json"
    if whole.is_file():
        return [whole]
    files = [path / "annotations" / f"{split}.json" for split in SPLITS]
    if found := [file for file in files if file.is_file()]:
        return found
    places = [path, *(path / name for name in _INSIDE)]
    named = [
        file
        for place in places
        for file in sorted(place.glob("*.json"))
        if _NAMES.fullmatch(file.stem)
    ]
    return [file for file in named if file.stem.lower().startswith("panoptic")] or named


def read_annotations(path: Path, files: list[Path]) -> CocoContent:
    """Read annotation files.

    Raises:
        DataError: one is no COCO annotation file.
    """
    images: list[CocoImage] = []
    categories: dict[int, Mapping[str, Any]] = {}
    twice: dict[Path, frozenset[int]] = {}
    stray: dict[Path, int] = {}
    for file in files:
        try:
            content = json.loads(file.read_text())
            categories |= {
                int(c["id"]): {**c, "name": str(c["name"])} for c in content["categories"]
            }
            of_image: dict[Any, list[Mapping[str, Any]]] = {}
            for annotation in content["annotations"]:
                of_image.setdefault(annotation["image_id"], []).append(annotation)
            places = _places(path, file)
            for image in content["images"]:
                found = tuple(of_image.get(image["id"], ()))
                images.append(_image(image, found, file, split_of(path, file), places))
            listed = {image["id"] for image in content["images"]}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{file} is no COCO annotation file ({type(error).__name__}: {error}): it "
                "needs images, annotations and categories"
            ) from error
        numbers = Counter(a["id"] for a in content["annotations"] if "id" in a)
        twice[file] = frozenset(number for number, count in numbers.items() if count > 1)
        stray[file] = sum(len(found) for i, found in of_image.items() if i not in listed)
    return CocoContent(path, tuple(files), tuple(images), categories, twice, stray)


def _image(
    image: Mapping[str, Any],
    annotations: tuple[Mapping[str, Any], ...],
    listing: Path,
    split: str,
    places: list[Path],
) -> CocoImage:
    name = re.sub(r"^(\./)?(images/)?", "", str(image["file_name"]))
    file = next((p / name for p in places if (p / name).is_file()), places[-1] / name)
    parent, _, rest = name.partition("/")
    if parent in SPLITS and rest:
        split, name = split or parent, rest
    elif not split and file.parent.name in SPLITS:
        split = file.parent.name
    size = (int(image["height"]), int(image["width"]))
    stem = Path(name).with_suffix("").as_posix()
    return CocoImage(file, (split, stem), size, annotations, listing)


def split_of(path: Path, file: Path) -> str:
    """The split that an annotation file's name or folder names; "" if none."""
    parent = "" if file.parent == path else file.parent.name
    match = _SPLIT.search(re.sub(r"\d+", "", f"{file.stem} {parent}".lower()))
    return match[1] if match else ""


def _places(path: Path, file: Path) -> list[Path]:
    """Where images of an annotation file may be; where they are missed comes last."""
    numbered = re.sub(r"^(instances|panoptic)[_-]", "", file.stem)  # train2017
    split, found = split_of(path, file), roots(path, "images")
    return [
        *(folder for place, folder in found if place == split and place),
        *(folder for place, folder in found if not place),
        *(folder for place, folder in found if place and not split),
        path / "images" / numbered,
        path / numbered,
        *([path / split] if split else []),
        file.parent,
        path,
        path / "images",
    ]
