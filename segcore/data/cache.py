"""Where decoded images are kept between epochs: nowhere, in memory, or in a file that is mapped."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np

from segcore.data.rows import (
    CLASS_MAPS,
    CachedRows,
    DecodedRows,
    Layout,
    Split,
    checksum,
    in_threads,
)
from segcore.data.targets import Targets
from segcore.errors import DataError, OptionError

CACHES = ("none", "ram", "disk")
HEADER_BYTES = 32
PAGE_BYTES = 4096
MEMORY_SHARE = 0.8


def open_rows(
    split: Split,
    layout: Layout,
    *,
    cache: str,
    targets: Targets = CLASS_MAPS,
    cache_dir: Path | None = None,
    name: str = "split",
    digest: str = "",
    threads: int = 1,
    block: int = 1,
) -> DecodedRows | CachedRows:
    """Rows of a split behind the cache that is asked for.

    Args:
        cache: "none", "ram" (filled as rows are first read) or "disk" (built at once, shared by
            all processes of the machine).
        targets: what the labels are; `layout` agrees with it on maps.
        cache_dir: folder of the disk cache.
        name: stem of the cache file.
        digest: identity of the split's content; another digest makes another file.
        threads: that decode the rows of one batch; a file is built with all cores.
        block: rows that "ram" decodes together (`CachedRows`).

    Raises:
        OptionError: unknown cache, no folder for "disk", or more pixels than fit in memory.
        DataError: the disk cannot hold the cache.
    """
    if cache == "none":
        return DecodedRows(split, targets=targets, threads=threads)
    if cache == "ram":
        check_memory(layout.total_bytes)
        empty = np.empty(layout.total_bytes, dtype=np.uint8)
        return CachedRows(split, layout, empty, targets=targets, threads=threads, block=block)
    if cache != "disk":
        raise OptionError(f"cache is {cache!r}; known: {', '.join(CACHES)}")
    if cache_dir is None:
        raise OptionError("cache is 'disk' but no cache_dir is given: name a folder for it")
    file = DiskCache(cache_dir, name, digest, layout)
    file.ensure(split, os.cpu_count() or 1, targets)
    return file.map(split, threads, targets)


def check_memory(needed: int) -> None:
    """Refuse a memory cache that would not fit.

    Raises:
        OptionError: `needed` bytes exceed 80 % of the machine's memory.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > MEMORY_SHARE * total:
        raise OptionError(
            f"the decoded images need {needed / 1e9:.1f} GB of {total / 1e9:.1f} GB memory: "
            "set data.cache to disk or none, or data.size to something smaller"
        )


class DiskCache:
    """The cache file of one split: header, checksum of each row, then the flat buffer.

    Written under a lock to a temporary name, then renamed. A file of another header or length
    (older shards, cut off, damaged) is built again. Rows are compared with their checksums when
    first read, and decoded anew where they differ; so nothing waits for the disk to sync.

    Args:
        folder: where the file lies.
        name: stem of the file.
        digest: identity of the split's content.
        layout: of the buffer.
    """

    def __init__(self, folder: Path, name: str, digest: str, layout: Layout) -> None:
        described = f"segcore cache 1 {digest} {layout.channels}"
        described += f" {layout.sizes}" + ("" if layout.maps else " images")
        self.header = sha256(described.encode()).digest()
        self.layout = layout
        self.folder = folder
        self.name = name
        self.path = folder / f"{name}-{self.header.hex()[:16]}.cache"
        table = HEADER_BYTES + 4 * len(layout.sizes)
        self.start = -(-table // PAGE_BYTES) * PAGE_BYTES
        self.length = self.start + layout.total_bytes

    def ensure(self, split: Split, threads: int, targets: Targets = CLASS_MAPS) -> None:
        """Build the file unless a whole one is there; one of several processes does it."""
        if not self.is_whole():
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder / f"{self.name}.lock"):
                if not self.is_whole():
                    self._build(split, threads, targets)

    def is_whole(self) -> bool:
        """Whether the file is there, complete, and of this content."""
        try:
            with self.path.open("rb") as file:
                header = file.read(HEADER_BYTES)
                return header == self.header and file.seek(0, os.SEEK_END) == self.length
        except OSError:
            return False

    def _build(self, split: Split, threads: int, targets: Targets) -> None:
        for stale in self.folder.glob(f"{self.name}-*.cache*"):
            stale.unlink(missing_ok=True)
        temporary = self.path.with_suffix(".cache.tmp")
        try:
            reserve(temporary, self.length)
            self._write(temporary, split, threads, targets)
            temporary.replace(self.path)
        except OSError as error:
            raise DataError(
                f"cannot write the cache {self.path} of {self.length / 1e9:.2f} GB: {error}; "
                "free the space, name another folder, or set data.cache to ram or none"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _write(self, path: Path, split: Split, threads: int, targets: Targets) -> None:
        file = np.memmap(path, dtype=np.uint8, mode="r+", shape=(self.length,))
        rows = CachedRows(split, self.layout, np.asarray(file[self.start :]), targets=targets)
        checksums = np.asarray(file[HEADER_BYTES : HEADER_BYTES + 4 * len(split)]).view(np.uint32)

        def write_row(index: int) -> None:
            rows.fill(index)
            checksums[index] = checksum(*rows.views(index))

        in_threads(write_row, range(len(split)), threads)
        file[:HEADER_BYTES] = np.frombuffer(self.header, dtype=np.uint8)

    def map(self, split: Split, threads: int, targets: Targets = CLASS_MAPS) -> CachedRows:
        """The rows of the file. Processes share its pages; a damaged row is mended in private."""
        file = np.asarray(np.memmap(self.path, dtype=np.uint8, mode="c", shape=(self.length,)))
        checksums = file[HEADER_BYTES : HEADER_BYTES + 4 * len(split)].view(np.uint32)
        buffer = file[self.start :]
        return CachedRows(
            split, self.layout, buffer, targets=targets, checksums=checksums, threads=threads
        )


def reserve(path: Path, length: int) -> None:
    """Make a file of `length` zero bytes whose blocks are allotted, so that no write fails later.

    Raises:
        OSError: the disk is too full.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, length)
        else:
            file.truncate(length)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file across processes; it ends with the process at the latest."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
