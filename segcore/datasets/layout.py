"""Which files a folder of images and masks holds, and which split each belongs to."""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from segcore.data.sample import SPLITS
from segcore.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")

FOLDERS = {
    "images": ("images", "image", "imgs", "img", "JPEGImages"),
    "masks": (
        "masks", "mask", "labels", "label", "annotations", "SegmentationClass", "gt", "gts",
        "ground_truth", "groundtruth",
    ),
    "instances": ("instances", "instance", "instance_masks", "SegmentationObject"),
}  # fmt: skip
"""Names of a kind's folder, in any case; the others where there is none of the first."""

Key = tuple[str, str]
"""(split that the file's place names, or "", path below that place without suffix)."""

Files = TypeVar("Files")

_WORD = re.compile(r"[^\W\d_]+[\W_]*")
_FOLDER = re.compile(rf"(\./)?(({'|'.join(FOLDERS['images'])})/)?", re.IGNORECASE)


def roots(path: Path, kind: str) -> list[tuple[str, Path]]:
    """Folders of a kind, a key of `FOLDERS`, that exist, each with the split that it names.

    Raises:
        DataError: several folders may be the one.
    """
    if found := _places(path, kind):
        return found
    wanted = {name.lower() for name in FOLDERS[kind]}
    beside = [path, *(path / split for split in SPLITS)]
    inside = {entry for place in beside if place.is_dir() for entry in place.iterdir()}
    names = sorted({entry.name for entry in inside if entry.name.lower() in wanted})
    pictured = [name for name in names if any(map(_has_picture, _places(path, name)))]
    if len(pictured) > 1:
        raise DataError(
            f"{path} has no {kind}/ but {'/ and '.join(pictured)}/: rename the right one to {kind}"
        )
    return _places(path, pictured[0]) if pictured else []


def _places(path: Path, name: str) -> list[tuple[str, Path]]:
    inner = [(split, path / name / split) for split in SPLITS]
    outer = [(split, path / split / name) for split in SPLITS]
    return [(s, f) for s, f in [*inner, *outer, ("", path / name)] if f.is_dir()]


def _has_picture(place: tuple[str, Path]) -> bool:
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in place[1].rglob("*"))


def find(path: Path, kind: str) -> dict[Key, list[Path]]:
    """Files of a kind by key; several only where they differ in nothing but the suffix."""
    files: dict[Key, list[Path]] = {}
    seen: set[Path] = set()
    for split, folder in roots(path, kind):
        for file in sorted(folder.rglob("*")):
            if file in seen or file.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            below = file.relative_to(folder).with_suffix("")
            if not any(part.startswith(".") for part in below.parts):
                seen.add(file)
                files.setdefault((split, below.as_posix()), []).append(file)
    return files


def pair(images: Mapping[Key, object], masks: Mapping[Key, Files]) -> dict[Key, Files]:
    """Masks by the keys of their images, where they differ by one suffix or prefix.

    A suffix (x.jpg, x_mask.png) is on every mask (of any form), or on every image too and then
    begins with no letter or digit (21_training.tif, 21_manual1.gif). A prefix (img_1.jpg,
    mask_1.png) is of letters, up to the first digit or what is neither. Where any stems are equal
    already, or a mask would find no image, masks keep their keys.
    """
    if not images or not masks or images.keys() & masks.keys():
        return dict(masks)
    for ending in _endings(images):
        short = _shortened(images, ending, _cut)
        for tail in _endings(masks) if short else ():
            free = not ending or not (ending[0].isalnum() or tail[:1].isalnum())
            if free and all(_cut(key, tail) in short for key in masks):
                return {short[_cut(key, tail)]: files for key, files in masks.items()}
    short, word = _shortened(images, _beginning(images), _behead), _beginning(masks)
    if all(_behead(key, word) in short for key in masks):
        return {short[_behead(key, word)]: files for key, files in masks.items()}
    return dict(masks)


def _shortened(keys: Collection[Key], part: str, cut: Callable[[Key, str], Key]) -> dict[Key, Key]:
    """Keys by what is left of them without a part; empty where two or a name would be lost."""
    short = {cut(key, part): key for key in keys}
    lost = len(short) < len(keys) or any(not stem.rpartition("/")[2] for _, stem in short)
    return {} if lost else short


def _endings(keys: Iterable[Key]) -> list[str]:
    """What all stems end with, shortest first; the first is empty."""
    backwards = [stem[::-1] for _, stem in keys]
    first, last = min(backwards), max(backwards)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    return [first[:count][::-1] for count in range((len(first) if length is None else length) + 1)]


def _cut(key: Key, ending: str) -> Key:
    return key[0], key[1].removesuffix(ending)


def _beginning(keys: Iterable[Key]) -> str:
    """The letters, and what follows them that is no letter or digit, that all names begin with."""
    found = [_WORD.match(stem.rpartition("/")[2]) for _, stem in keys]
    words = {word.group() if word else "" for word in found}
    return words.pop() if len(words) == 1 else ""


def _behead(key: Key, beginning: str) -> Key:
    folder, slash, name = key[1].rpartition("/")
    return key[0], folder + slash + name.removeprefix(beginning)


def read_lists(path: Path) -> dict[str, str]:
    """Stem -> split, from `train.txt`, `val.txt`, `test.txt`, `unlabelled.txt`.

    Raises:
        DataError: a list is no text, or a stem is in two of them.
    """
    splits: dict[str, str] = {}
    for split in SPLITS:
        listing = path / f"{split}.txt"
        if not listing.is_file():
            continue
        try:
            lines = listing.read_text().splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{listing} is not UTF-8 text: save it as such") from error
        for line in filter(None, map(_stem, lines)):
            if splits.setdefault(line, split) != split:
                raise DataError(
                    f"{line} is in {splits[line]}.txt and in {split}.txt of {path}: "
                    "remove it from one"
                )
    return splits


def _stem(line: str) -> str:
    """A line's stem: the line may be a stem, a file name or path, or "image mask"."""
    line = line.strip()
    first = line.split()[0] if line else ""
    if first.lower().endswith(IMAGE_SUFFIXES):
        line = first
    cut = line.lower().endswith(IMAGE_SUFFIXES)
    return _FOLDER.sub("", line.rsplit(".", 1)[0] if cut else line, count=1)


def assign(
    keys: Iterable[Key],
    lists: dict[str, str],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> dict[Key, str]:
    """The split of each key: its place, else its list, else drawn by a hash of seed and stem.

    Where training lists exist, what no list names is left out. A draw gives each split exactly its
    share, rounded: at least one to val and to test where there are three files and the fractions
    are above 0, and at least one to train. The hash orders the files, so that a new one moves few
    others. Labels are not asked: a rare class may fall to val or test alone, which validation then
    says.
    """
    splits: dict[Key, str] = {}
    drawn: list[Key] = []
    listed = any(split != "unlabelled" for split in lists.values())
    for key in keys:
        place, stem = key
        split = place or lists.get(stem) or lists.get(Path(stem).name)
        if split:
            splits[key] = split
        elif not listed:
            drawn.append(key)
    if any(split in ("train", "val", "test") for split, _ in splits):
        return splits | dict.fromkeys(drawn, "train")
    drawn.sort(key=lambda key: hashlib.sha256(f"{seed} {key[1]}".encode()).digest())
    test = _share(len(drawn), test_fraction)
    val = min(_share(len(drawn), val_fraction), max(len(drawn) - test - 1, 0))
    for rank, key in enumerate(drawn):
        splits[key] = "test" if rank < test else "val" if rank < test + val else "train"
    return splits


def _share(count: int, fraction: float) -> int:
    return max(round(count * fraction), 1 if fraction > 0 and count >= 3 else 0)
