"""The folder of a run where `cluster.storage` is a bucket: worked on locally, shared from there.

Where the storage is a folder that all nodes see, a mirror has no place and does nothing.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.storage import scratch_name
from segcore.data.address import is_remote

if TYPE_CHECKING:
    from segcore.data.place import Place


class Mirror:
    """A local folder, and where its files are for other nodes and for the next try.

    Args:
        folder: absolute; may not be there yet.
        place: the same folder in the bucket; None where `folder` itself is shared.
    """

    def __init__(self, folder: Path, place: "Place | None" = None) -> None:
        self.folder = folder
        self.place = place

    @classmethod
    def of(cls, storage: str, folder: Path) -> "Mirror":
        """The mirror of a folder below `storage.scratch(storage)` of this node or another."""
        if not is_remote(storage):
            return cls(folder)
        from segcore.data.place import Place

        inner = folder.parts[folder.parts.index(scratch_name(storage)) + 1 :]
        return cls(folder, Place("/".join([storage.rstrip("/"), *inner])))

    def __truediv__(self, name: str) -> "Mirror":
        return Mirror(self.folder / name, None if self.place is None else self.place / name)

    @property
    def is_remote(self) -> bool:
        return self.place is not None

    def read(self, name: str) -> bytes | None:
        """The shared version of a file; None if there is none."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return self.place.read(name) if self.place else (self.folder / name).read_bytes()
        return None

    def names(self, name: str) -> list[str]:
        """Names of the shared files of a folder and of those in it, relative to it."""
        if self.place is not None:
            return sorted((self.place / name).sizes())
        top = self.folder / name
        return sorted(f.relative_to(top).as_posix() for f in top.rglob("*") if f.is_file())

    def has(self, name: str) -> bool:
        """Whether a file is shared."""
        return self.place.has(name) if self.place else (self.folder / name).is_file()

    def push(self, name: str) -> None:
        """Share a file, or the files of a folder; one that is gone by now is left out."""
        if self.place is None:
            return
        for file in self._files(name):
            with suppress(FileNotFoundError):
                self.place.upload(file, file.relative_to(self.folder).as_posix())

    def push_new(self, name: str) -> None:
        """Share those files of a folder that are not shared yet."""
        if self.place is None:
            return
        there = (self.place / name).sizes()
        for file in self._files(name):
            if file.relative_to(self.folder / name).as_posix() not in there:
                self.push(file.relative_to(self.folder).as_posix())

    def pull(self, name: str, *, exact: bool = False) -> None:
        """Fetch a file, or what a folder has that is not here.

        Args:
            exact: fetch what is here too, and remove here what is not shared: the shared version
                counts, also where this node knows of a later one.
        """
        if self.place is None:
            return
        there = self.place.sizes()
        shared = [key for key in there if key == name or key.startswith(f"{name}/")]
        for key in shared:
            if exact or not (self.folder / key).is_file():
                self.place.download(key, self.folder / key)
        if exact:
            for file in self._files(name):
                if file.relative_to(self.folder).as_posix() not in shared:
                    file.unlink(missing_ok=True)

    def prune(self, name: str) -> None:
        """Remove from the shared version of a folder what is no longer here."""
        if self.place is None:
            return
        here = {file.relative_to(self.folder).as_posix() for file in self._files(name)}
        for key in self.place.sizes():
            if key.startswith(f"{name}/") and key not in here:
                self.place.remove(key)

    def remove(self, name: str) -> None:
        """Remove a file here and there."""
        (self.folder / name).unlink(missing_ok=True)
        if self.place is not None:
            self.place.remove(name)

    def clear(self) -> None:
        """Remove what is shared."""
        if self.place is not None:
            self.place.clear()

    def _files(self, name: str) -> Iterator[Path]:
        path = self.folder / name
        found = [path] if path.is_file() else sorted(path.rglob("*"))
        return (file for file in found if file.is_file() and not file.name.startswith("."))
