"""Which files a folder of images and masks holds, and which split each belongs to."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from segcore.data.sample import SPLITS
from segcore.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

Key = tuple[str, str]
"""(split that the file's place names, or "", path below that place without suffix)."""


def roots(path: Path, kind: str) -> list[tuple[str, Path]]:
    """Folders of a kind ("images", "masks") that exist, each with the split that it names."""
    inner = [(split, path / kind / split) for split in SPLITS]
    outer = [(split, path / split / kind) for split in SPLITS]
    return [(s, f) for s, f in [*inner, *outer, ("", path / kind)] if f.is_dir()]


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
    return (line.rsplit(".", 1)[0] if cut else line).removeprefix("./").removeprefix("images/")


def assign(
    keys: Iterable[Key],
    lists: dict[str, str],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> dict[Key, str]:
    """The split of each key: its place, else its list, else drawn by a hash of seed and stem.

    Where training lists exist, what no list names is left out. A draw gives each split its
    share, at least one where there are three; a new file moves few others.
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
    val = _share(len(drawn), val_fraction)
    for rank, key in enumerate(drawn):
        splits[key] = "test" if rank < test else "val" if rank < test + val else "train"
    return splits


def _share(count: int, fraction: float) -> int:
    return max(round(count * fraction), 1 if fraction > 0 and count >= 3 else 0)
