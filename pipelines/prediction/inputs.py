"""What a user may give to predict: folder, glob, list file, image, shards or a bucket."""

import glob
import os
from collections.abc import Iterator, Sequence
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


def find_inputs(images: str, *, exclude: Path | None = None) -> list[Input]:
    """Every input of a folder (with subfolders), glob, list file (.txt), image, folder of
    Parquet shards or s3:// address, sorted by path.

    Args:
        exclude: a folder that is left out, where results are written.

    Raises:
        DataError: there is nothing; says what was looked for.
    """
    if "://" in images:
        found = _remote(images)
    elif any(character in images for character in WILDCARDS) and not os.path.exists(images):
        found = _glob(images)
    else:
        found = _local(Path(images))
    if exclude is not None:
        hidden = f"{exclude.resolve()}{os.sep}"
        found = [item for item in found if not os.path.abspath(item.path).startswith(hidden)]
    if not any(not item.skip for item in found):
        raise DataError(
            f"no images in {images}: give a folder of images, a quoted glob, a .txt list of "
            f"paths, or a folder of Parquet shards. Known suffixes: {' '.join(IMAGE_SUFFIXES)}"
        )
    return _unique_names(found)


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


def _local(path: Path) -> list[Input]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        visible = [file for file in files if not _is_hidden(file.relative_to(path))]
        found = [_file_input(str(file), file.relative_to(path)) for file in visible]
        shards = [file for file in visible if file.suffix == ".parquet"]
        if shards and all(item.skip for item in found):
            return [item for shard in shards for item in _shard_inputs(shard)]
        return found
    if not path.exists():
        raise DataError(f"{path} does not exist: check the path of the images")
    if path.suffix == ".parquet":
        return list(_shard_inputs(path))
    if path.suffix == ".txt":
        return _listed(path)
    return [Input(str(path), path.stem)]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _file_input(path: str, relative: Path | PurePosixPath) -> Input:
    known = relative.suffix.lower() in IMAGE_SUFFIXES
    skip = "" if known else f"{relative.suffix or relative.name} is no image suffix"
    return Input(path, relative.with_suffix("").as_posix(), skip=skip)


def _glob(pattern: str) -> list[Input]:
    fixed = next(i for i, character in enumerate(pattern) if character in WILDCARDS)
    base = os.path.dirname(pattern[:fixed])
    files = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    return [_file_input(path, Path(os.path.relpath(path, base or "."))) for path in files]


def _listed(path: Path) -> list[Input]:
    """Paths a line; relative ones start from the folder of the list."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no list of paths: {error}") from error
    named = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    files = list(dict.fromkeys(os.path.normpath(path.parent / line) for line in named))
    base = os.path.commonpath([os.path.dirname(file) or "." for file in files]) if files else "."
    return [
        Input(file, Path(os.path.relpath(file, base)).with_suffix("").as_posix()) for file in files
    ]


def _remote(uri: str) -> list[Input]:
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
        return [item for shard in shards for item in _shard_inputs(shard)]
    return found


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


def _unique_names(found: Sequence[Input]) -> list[Input]:
    """Names that two inputs share keep the suffix: a.jpg and a.png become a.jpg and a.png."""
    counts: dict[str, int] = {}
    for item in found:
        counts[item.name] = counts.get(item.name, 0) + (not item.skip)
    taken: set[str] = set()
    unique = []
    for item in found:
        name = item.name
        if counts[name] > 1 and item.row < 0:
            name += PurePosixPath(item.path).suffix
        number = 1
        while name in taken and not item.skip:
            number += 1
            name = f"{item.name}-{number}"
        if not item.skip:
            taken.add(name)
        unique.append(Input(item.path, name, item.row, item.skip))
    return unique
