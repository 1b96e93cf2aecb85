"""Datasets that come as one archive: found in a mirror or fetched, unpacked, verified."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from segcore.data.atomic import new_folder
from segcore.datasets.base import DataSource, Progress
from segcore.datasets.unpack import MB, Select, unpack
from segcore.errors import DataError


@dataclass(frozen=True)
class Archive:
    """What to fetch and what must be in it.

    Args:
        file: its name in a mirror; what `url` gives is kept under it too.
        url: where the network has it; "" where only a login or a request gives it.
        select: path in the archive -> path to unpack it to; None: leave it out.
        digest: `tree_digest` of the unpacked files. Archives that a server packs on demand do
            not stay the same byte for byte, so it is the files that are verified. "" where it is
            not known: what `published` unpacks is counted instead.
        top: what all unpacked paths begin with.
        listing: name of a table in the mirror (columns path, source_sha256) that names the
            files behind `digest`.
        size: of the archive in bytes, about, for progress where the server does not tell it.
        others: further names under which a mirror may have it.
        pixels: `tree_digest` of the unpacked images by `hash_pixels`, where a mirror may hold them
            in another encoding: files with this digest are right as well.
        packed: digest of the archive itself where its bytes are fixed, "md5:..." or "sha1:...".
    """

    file: str
    url: str
    select: Select
    digest: str = ""
    top: str = ""
    listing: str | None = None
    size: int = 0
    others: tuple[str, ...] = ()
    pixels: str = ""
    packed: str = ""


def install(archive: Archive, source: DataSource, progress: Progress) -> None:
    """Make `source.raw` hold the archive's files; does nothing if it does already.

    Raises:
        DataError: no archive can be had, it is broken, or it holds other files.
    """
    progress(f"verify {archive.top}", 0, 0)
    if (source.raw / archive.top).is_dir() and _is_right(source.raw, archive):
        return
    packed, fetched = find(archive, source, progress)
    try:
        with new_folder(source.raw) as folder:
            unpack(packed, folder, archive.select, progress)
            _verify(folder, archive, source, packed)
            origin = {"origin": archive.url, "files_sha256": archive.digest}
            (folder / "source.json").write_text(json.dumps(origin, indent=1) + "\n")
    finally:
        if fetched:
            shutil.rmtree(packed.parent, ignore_errors=True)


def find(archive: Archive, source: DataSource, progress: Progress) -> tuple[Path, bool]:
    """The packed archive: (path, whether it was downloaded for this).

    Raises:
        DataError: neither the mirror nor the network has it.
    """
    found = in_mirror(archive, source)
    return (fetch(archive, source, progress), True) if found is None else (found, False)


def in_mirror(archive: Archive, source: DataSource) -> Path | None:
    """The packed archive in the mirror; None if it is not there."""
    names = (archive.file, *archive.others)
    places = [] if source.mirror is None else [source.mirror / name for name in names]
    return next((place for place in places if place.is_file()), None)


def fetch(archive: Archive, source: DataSource, progress: Progress) -> Path:
    """Download the archive to a folder beside `source.raw`; a broken download starts anew.

    One whose bytes are fixed (`packed`) and that is there already is not downloaded again.

    Raises:
        DataError: it cannot be fetched.
    """
    where = f"put {archive.file} into {source.mirror or 'a folder and name it as the mirror'}"
    try:
        import pooch
    except ImportError as error:
        raise DataError(f"downloading needs pooch: pip install pooch, or {where}") from error
    folder = source.raw.with_name(f".{source.raw.name}.download")
    if not archive.packed:
        shutil.rmtree(folder, ignore_errors=True)
    pooch.get_logger().setLevel("ERROR")
    registry = pooch.create(
        path=folder,
        base_url="",
        registry={archive.file: archive.packed or None},
        urls={archive.file: archive.url},
        retry_if_failed=2,
    )
    downloader = pooch.HTTPDownloader(progressbar=_Bar(archive, progress), timeout=30)
    try:
        return Path(registry.fetch(archive.file, downloader=downloader))
    except (OSError, ValueError) as error:
        if not archive.packed:
            shutil.rmtree(folder, ignore_errors=True)
        raise DataError(
            f"cannot download {archive.url}: {_reason(error)}. Check the network, or {where}"
        ) from error


def _reason(error: BaseException) -> str:
    """The innermost cause, without addresses of objects."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"{type(error).__name__}: {error}"


class _Bar:
    """What pooch takes for a progress bar, passed on to a `Progress`."""

    def __init__(self, archive: Archive, progress: Progress) -> None:
        self.name = archive.file
        self.expected = archive.size
        self.progress = progress
        self.total = 0
        self.done = 0

    def update(self, count: int) -> None:
        self.done += count
        total = max(self.total or self.expected, self.done)
        self.progress(f"download {self.name} [MB]", self.done // MB, total // MB)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass


def tree_digest(files: Mapping[str, str]) -> str:
    """sha256 over the lines "path sha256\\n" of some files, sorted by path.

    Args:
        files: path, with forward slashes -> sha256 of the content, in hex.
    """
    lines = (f"{path} {files[path]}\n" for path in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def hash_tree(
    root: Path, top: str, hash_one: Callable[[Path], str] | None = None
) -> dict[str, str]:
    """sha256 of every file under `root/top`, or what `hash_one` gives, by its path below `root`."""
    files = (path for path in (root / top).rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): (hash_one or hash_file)(path) for path in files}


def hash_file(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_pixels(path: Path) -> str:
    """sha256 of an image's mode, size and decoded pixels, in hex; of other files, of the file."""
    try:
        with Image.open(path) as image:
            head = f"{image.mode} {image.width}x{image.height}\n".encode()
            return hashlib.sha256(head + image.tobytes()).hexdigest()
    except OSError:
        return hash_file(path)


def _is_right(root: Path, archive: Archive) -> bool:
    if tree_digest(hash_tree(root, archive.top)) == archive.digest:
        return True
    if not archive.pixels:
        return False
    return tree_digest(hash_tree(root, archive.top, hash_pixels)) == archive.pixels


def _verify(folder: Path, archive: Archive, source: DataSource, packed: Path) -> None:
    if _is_right(folder, archive):
        return
    files = hash_tree(folder, archive.top)
    digest = tree_digest(files)
    raise DataError(
        f"{packed} does not hold the expected {archive.top}: digest {digest[:16]} of "
        f"{len(files)} files, expected {archive.digest[:16]}{_difference(files, archive, source)}."
        f" Remove it to download it again, or put an intact {archive.file} there"
    )


def _difference(files: Mapping[str, str], archive: Archive, source: DataSource) -> str:
    """Name the first differing file, if a listing that matches the digest is at hand."""
    if archive.listing is None or source.mirror is None:
        return ""
    expected = _read_listing(source.mirror / archive.listing)
    if tree_digest(expected) != archive.digest:
        return ""
    for path in sorted({*expected, *files}):
        if path not in files:
            return f"; first difference: {path} is missing"
        if path not in expected:
            return f"; first difference: {path} does not belong there"
        if files[path] != expected[path]:
            return f"; first difference: {path} has other content"
    return ""


def _read_listing(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    header = lines[0].split("\t") if lines else []
    rows: list[dict[str, Any]] = [
        dict(zip(header, line.split("\t"), strict=False)) for line in lines[1:]
    ]
    return {row["path"]: row["source_sha256"] for row in rows if "source_sha256" in row}
