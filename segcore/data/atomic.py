"""Files and folders that are there whole or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from segcore.errors import DataError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the OSErrors of a full disk or a forbidden folder into DataErrors about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DataError(
                f"cannot write {path}: {os.strerror(error.errno or 0)}. "
                "Nothing half-written is left; free some space there and run it again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DataError(
                f"cannot write {path}: {os.strerror(error.errno or 0)}. "
                "Make the folder writable, or choose another"
            ) from error
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends well.

    What stood at `path` is replaced as a whole. Folders that killed processes left behind are
    removed first.

    Raises:
        DataError: the disk is full or the place not writable.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        partial.mkdir()
        try:
            yield partial
            replaced = path.with_name(f".{path.name}.{os.getpid()}.replaced.partial")
            if path.exists():
                path.rename(replaced)
            partial.rename(path)
            shutil.rmtree(replaced, ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary folders of `path` whose process has ended."""
    for folder in path.parent.glob(f".{path.name}.*.partial"):
        pid = folder.name[len(path.name) + 2 :].split(".")[0]
        if pid == str(os.getpid()) or (pid.isdigit() and not _runs(int(pid))):
            shutil.rmtree(folder, ignore_errors=True)


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` by a temporary name, synced and renamed.

    Raises:
        DataError: the disk is full or the place not writable.
    """
    with new_file(path) as file:
        file.write(data)


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file beside `path`, synced, that takes its place when the block ends well.

    Raises:
        DataError: the disk is full or the place not writable.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
