"""Archives from elsewhere: regular files alone, inside the folder, no more than the disk holds."""

import errno
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from segcore.datasets.base import Progress
from segcore.errors import DataError

Select = Callable[[str], str | None]

MB = 1_000_000

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
_BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, RuntimeError,
    ValueError,
)  # fmt: skip


def unpack(packed: Path, folder: Path, select: Select, progress: Progress) -> None:
    """Unpack selected files of a tar or zip archive; none can land outside `folder`.

    Raises:
        DataError: the archive is broken or tries to write elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if zipfile.is_zipfile(packed):
            _unpack_zip(packed, folder, select, progress)
        else:
            _unpack_tar(packed, folder, select, progress)
    except (*_BROKEN, OSError) as error:
        if isinstance(error, DataError) or getattr(error, "errno", None) in _DISK:
            raise
        raise DataError(
            f"{packed} is broken ({error}): replace it by an intact copy, or remove it"
        ) from error


def _unpack_tar(packed: Path, folder: Path, select: Select, progress: Progress) -> None:
    total = packed.stat().st_size
    with packed.open("rb") as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            target = select(member.name) if member.isfile() else None
            if target is not None:
                _check_room(packed, member.size, folder)
                archive.extract(member.replace(name=target), folder, filter="data")
                progress(f"unpack {packed.name} [MB]", min(stream.tell(), total) // MB, total // MB)


def _unpack_zip(packed: Path, folder: Path, select: Select, progress: Progress) -> None:
    with zipfile.ZipFile(packed) as archive:
        members = archive.infolist()
        _check_room(packed, sum(member.file_size for member in members), folder)
        for number, member in enumerate(members, start=1):
            target = None if member.is_dir() else select(member.filename)
            if target is not None:
                path = folder / target
                if not path.resolve().is_relative_to(folder.resolve()):
                    raise DataError(f"{packed} holds {member.filename}: outside its own folder")
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as content, path.open("wb") as file:
                    shutil.copyfileobj(content, file)
            progress(f"unpack {packed.name}", number, len(members))


def _check_room(packed: Path, size: int, folder: Path) -> None:
    """Refuse, before it is unpacked, what the disk cannot hold: a bomb, or too much in earnest."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DataError(
            f"{packed} unpacks to {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: free some "
            "space, or do not trust where it came from"
        )
