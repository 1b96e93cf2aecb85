"""What a user may give to predict: folder, glob, list file, image, shards or a bucket."""

import glob
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from segcore.data.address import is_remote
from segcore.data.place import Place
from segcore.errors import DataError

IMAGE_SUFFIXES = (
    ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
WILDCARDS = "*?["


@dataclass(frozen=True)
class Input:
    """One image to predict, by reference.

    Args:
        path: of the file as the user would write it; `shard.parquet#id` for a row of a shard.
        name: path without suffix below the outputs; keeps subfolders.
        row: for a row of a shard, its number in the file; -1 for an image file.
        skip: why it is no image, where that is known from its name; "" if it is to be tried.
    """

    path: str
    name: str
    row: int = -1
    skip: str = ""


def find_inputs(images: str, *, exclude: Path | None = None) -> Iterator[Input]:
    """Every input of a folder (with subfolders), glob, list file (.txt), image, folder of
    Parquet shards or s3:// address, as they are found. Two may have one name (`Index`).

    Args:
        exclude: a folder that is left out, where results are written.

    Raises:
        DataError: there is nothing; says what was looked for.
    """
    hidden = None if exclude is None else f"{exclude.resolve()}{os.sep}"
    nothing = True
    for item in _found(images):
        if hidden is None or not os.path.abspath(item.path).startswith(hidden):
            nothing = nothing and bool(item.skip)
            yield item
    if nothing:
        raise DataError(
            f"no images in {images}: give a folder of images, a quoted glob, a .txt list of "
            f"paths, or a folder of Parquet shards. Known suffixes: {' '.join(IMAGE_SUFFIXES)}"
        )


def _found(images: str) -> Iterator[Input]:
    if "://" in images:
        return _remote(images)
    if any(character in images for character in WILDCARDS) and not os.path.exists(images):
        return _glob(images)
    return _local(Path(images))


def read_bytes(item: Input, base: Path | str = "") -> bytes:
    """The encoded image.

    Args:
        base: folder that a relative path starts from; the current one by default.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if item.row >= 0:
            shard = item.path.rpartition("#")[0]
            return _shard_row(shard if is_remote(shard) else os.path.join(base, shard), item.row)
        if "://" in item.path:
            filesystem, path = fs.FileSystem.from_uri(item.path)
            with filesystem.open_input_stream(path) as stream:
                data: bytes = stream.read()
                return data
        return Path(base, item.path).read_bytes()
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(f"{item.path} cannot be read: {reason}") from error


def _local(path: Path) -> Iterator[Input]:
    if path.is_dir():
        shards: list[Path] = []  # which count where there is no image
        for file in _visible(str(path)):
            if not _file_input(str(file), file).skip:
                shards.clear()
                break
            shards += [file] if file.suffix == ".parquet" else []
        if shards:
            return (item for shard in sorted(shards) for item in _shard_inputs(shard))
        return (_file_input(str(file), file.relative_to(path)) for file in _visible(str(path)))
    if not path.exists():
        raise DataError(f"{path} does not exist: check the path of the images")
    if path.suffix == ".parquet":
        return _shard_inputs(path)
    if path.suffix == ".txt":
        return _listed(path)
    return iter([Input(str(path), path.stem)])


def _visible(folder: str) -> Iterator[Path]:
    """Files of a folder and of those in it, as the disk has them; a link to a folder is none."""
    with suppress(PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _visible(entry.path)
            elif entry.is_file():
                yield Path(entry.path)


def _file_input(path: str, relative: Path | PurePosixPath) -> Input:
    known = relative.suffix.lower() in IMAGE_SUFFIXES
    skip = "" if known else f"{relative.suffix or relative.name} is no image suffix"
    return Input(path, relative.with_suffix("").as_posix(), skip=skip)


def _glob(pattern: str) -> Iterator[Input]:
    fixed = next(i for i, character in enumerate(pattern) if character in WILDCARDS)
    base = os.path.dirname(pattern[:fixed])
    for path in glob.iglob(pattern, recursive=True):
        if os.path.isfile(path):
            yield _file_input(path, Path(os.path.relpath(path, base or ".")))


def _listed(path: Path) -> Iterator[Input]:
    """Paths a line; relative ones start from the folder of the list."""
    base = None
    for file in _lines(path):
        folder = os.path.dirname(file) or "."
        base = folder if base is None else os.path.commonpath([base, folder])
    for file in _lines(path):
        yield Input(file, Path(os.path.relpath(file, base)).with_suffix("").as_posix())


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if line.strip() and not line.startswith("#"):
                    yield os.path.normpath(path.parent / line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no list of paths: {error}") from error


def _remote(uri: str) -> Iterator[Input]:
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.Directory:
            entries = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
            files = sorted(entry.path for entry in entries if entry.type == fs.FileType.File)
        else:
            files = [path] if info.type == fs.FileType.File else []
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{uri} cannot be listed: {error}") from error
    base = path if info.type == fs.FileType.Directory else str(PurePosixPath(path).parent)
    address = uri.removesuffix("/").removesuffix(path.removesuffix("/"))
    found = [
        _file_input(f"{address}{file}", PurePosixPath(file).relative_to(base)) for file in files
    ]
    shards = [item.path for item in found if item.path.endswith(".parquet")]
    if shards and all(item.skip for item in found):
        return (item for shard in shards for item in _shard_inputs(shard))
    return iter(found)


def _shard_inputs(path: Path | str) -> Iterator[Input]:
    try:
        ids: list[Any] = _open_shard(str(path)).read(columns=["id"]).column("id").to_pylist()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(
            f"{path} is no shard of images ({str(error).splitlines()[0]}): it needs the columns "
            "id and image{bytes, path}, as the prepare stage writes them"
        ) from error
    for row, name in enumerate(ids):
        yield Input(f"{path}#{name}", str(name), row=row)


def shard_rows(path: Path) -> dict[str, int]:
    """Number of each row of a shard by its id.

    Raises:
        DataError: it is no shard.
    """
    return {item.name: item.row for item in _shard_inputs(path)}


def _open_shard(path: str) -> pq.ParquetFile:
    folder, _, name = path.rpartition("/")
    return Place(folder or ".").parquet(name)


@lru_cache(maxsize=2)
def _shard_file(path: str) -> tuple[pq.ParquetFile, list[int]]:
    file = _open_shard(path)
    ends, total = [], 0
    for group in range(file.metadata.num_row_groups):
        total += file.metadata.row_group(group).num_rows
        ends.append(total)
    return file, ends


@lru_cache(maxsize=2)
def _shard_group(path: str, group: int) -> pa.ChunkedArray:
    file, _ = _shard_file(path)
    return file.read_row_group(group, columns=["image"], use_threads=False).column("image")


def _shard_row(path: str, row: int) -> bytes:
    _, ends = _shard_file(path)
    group = next(index for index, end in enumerate(ends) if row < end)
    start = ends[group - 1] if group else 0
    data: bytes = _shard_group(path, group)[row - start]["bytes"].as_py()
    return data
