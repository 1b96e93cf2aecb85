"""What adapters of published datasets share: archives or an unpacked copy, counts, splits.

Published figures are reported on a set whose labels anyone has. That set is `test` here, and `val`
is drawn from the training set, so that no choice is made on the images that are reported.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from segcore.data.atomic import write_file
from segcore.data.sample import DatasetInfo, Sample
from segcore.datasets.archive import tree_digest
from segcore.datasets.base import DataSource, Progress, silent
from segcore.datasets.publication import Publication, install
from segcore.errors import DataError, OptionError

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Entry:
    """One image as its publisher lists it.

    Args:
        split: the publisher's, a key of `Publication.roles`.
        name: unique in the dataset.
        image: its file.
        labels: files of its labels, in the adapter's own order.
        group: images of one group are not parted between training and validation; "": its own.
        facts: what else the publisher says of it.
    """

    split: str
    name: str
    image: Path
    labels: tuple[Path, ...]
    group: str = ""
    facts: tuple[Any, ...] = ()


class PublishedDataset(ABC):
    """Base of the adapters; a subclass says what the publisher's files mean.

    The files are those of an unpacked copy (`source.path`), which is read in place, or those of the
    archives that a mirror or the network has, which are unpacked into `source.raw`. Option of all:
    `complete`, true unless set: every published image must be there; false takes what is there.
    """

    options: tuple[str, ...] = ()

    def __init__(self, source: DataSource) -> None:
        self.source = source
        known = ("complete", *self.options)
        unknown = sorted(set(source.options) - set(known))
        if unknown:
            raise OptionError(
                f"{self.publication.name} has no option {unknown[0]!r}. Known: {', '.join(known)}"
            )
        self.complete = self._flag("complete", default=True)

    @property
    @abstractmethod
    def publication(self) -> Publication:
        """Where the dataset comes from."""

    @abstractmethod
    def list_entries(self, root: Path) -> list[Entry]:
        """Every image of an unpacked copy, in order.

        Raises:
            DataError: a list is missing or damaged.
        """

    @abstractmethod
    def describe(self) -> DatasetInfo:
        """Classes and what is labelled."""

    @abstractmethod
    def sample(self, entry: Entry, split: str) -> Sample:
        """The sample of an image, in one of our splits."""

    def download(self, progress: Progress = silent) -> None:
        """Unpack the archives unless an unpacked copy is named, and count what is there.

        Raises:
            DataError: the data cannot be had, or images are missing.
        """
        if self.source.path is None and not self._is_installed():
            install(self.publication, self.source, progress)
            self.__dict__.pop("entries", None)
        faults = self._faults()
        if faults and self.complete:
            raise DataError(
                f"{self.root} is no complete {self.publication.name}: {'; '.join(faults)}. Add "
                f"what is missing ({self.publication.layout}), or take what is there: "
                "data.options.complete: false"
            )
        content = {
            "origin": self.publication.page,
            "path": "" if self.source.path is None else str(self.source.path),
            "images": dict(Counter(entry.split for entry in self._present())),
            "listing_sha256": self._listing,
        }
        text = json.dumps(content, indent=1) + "\n"
        write_file(self.source.raw / "source.json", text.encode())

    @property
    def root(self) -> Path:
        """The folder in which the publisher's paths begin.

        Raises:
            DataError: there is no copy in the folder that is named.
        """
        publication = self.publication
        base = self.source.raw if self.source.path is None else self.source.path
        for top in ("", *publication.tops):
            if (base / top / publication.marker).exists():
                return base / top
        if self.source.path is None:
            raise DataError(f"{base / publication.marker} is missing: run the download stage")
        raise DataError(
            f"data.path {base} holds no {publication.name}: {publication.marker} is missing. It "
            f"needs {publication.layout}"
        )

    @cached_property
    def entries(self) -> list[Entry]:
        """Every image that the publisher lists, there or not."""
        return self.list_entries(self.root)

    @cached_property
    def described(self) -> DatasetInfo:
        """What `describe` says, once."""
        return self.describe()

    def info(self) -> DatasetInfo:
        """As the subclass describes it; what is missing becomes a warning."""
        found = self.described
        fix = "nothing, or add what is missing"
        partial = tuple(("part of the published dataset", fault, fix) for fault in self._faults())
        return replace(found, assumptions=(*found.assumptions, *partial))

    def samples(self) -> Iterator[Sample]:
        """In the publisher's order; see `Publication.roles` for the splits."""
        roles = self.publication.roles
        entries = self._present()
        held = set()
        if "val" not in roles.values():
            first = next(split for split, role in roles.items() if role == "train")
            training = [entry for entry in entries if entry.split == first]
            held = hold_out(training, self.source.val_fraction, self.source.seed)
        for entry in entries:
            yield self.sample(entry, "val" if entry.name in held else roles[entry.split])

    def _flag(self, name: str, *, default: bool) -> bool:
        value = self.source.options.get(name, default)
        if not isinstance(value, bool):
            raise OptionError(f"{name} is {value!r}: use true or false")
        return value

    def _choice(self, name: str, known: tuple[Choice, ...]) -> Choice:
        """The value of an option; the first one that is known where it is not set."""
        value = self.source.options.get(name, known[0])
        if value not in known:
            raise OptionError(f"{name} is {value!r}: use one of {', '.join(map(str, known))}")
        return known[known.index(value)]

    def _present(self) -> list[Entry]:
        """Images of which no file is missing; all of them where all must be there."""
        if self.complete:
            return self.entries
        return [entry for entry in self.entries if not _missing(entry)]

    def _faults(self) -> list[str]:
        """How what is there differs from what was published."""
        found = Counter(entry.split for entry in self.entries)
        faults = [
            f"{split} has {found[split]} images, published are {count}"
            for split, count in self.publication.counts.items()
            if found[split] != count
        ]
        missing = [file for entry in self.entries for file in _missing(entry)]
        if missing:
            faults.append(f"{len(missing)} files are missing, first {missing[0]}")
        return faults

    @property
    def _listing(self) -> str:
        """Digest of paths and sizes of all files in use."""
        files = {f for entry in self._present() for f in (entry.image, *entry.labels)}
        there = (file for file in files if file.is_file())
        sizes = {os.path.relpath(f, self.root): str(f.stat().st_size) for f in there}
        return tree_digest(sizes)

    def _is_installed(self) -> bool:
        """Whether `source.raw` holds what an earlier download left there."""
        try:
            before = json.loads((self.source.raw / "source.json").read_text())
            return bool(before["path"] == "" and before["listing_sha256"] == self._listing)
        except (OSError, ValueError, KeyError, TypeError):
            return False


def _missing(entry: Entry) -> list[Path]:
    return [file for file in (entry.image, *entry.labels) if not file.is_file()]


def hold_out(entries: list[Entry], fraction: float, seed: int) -> set[str]:
    """Names of the images that validate: whole groups, ordered by a hash of the seed.

    Groups are taken as long as they fit into the fraction; at least one is, and one is left, where
    there are two and the fraction is above 0.
    """
    groups: dict[str, list[str]] = {}
    for entry in entries:
        groups.setdefault(entry.group or entry.name, []).append(entry.name)
    order = sorted(groups, key=lambda g: hashlib.sha256(f"{seed} {g}".encode()).digest())
    room = round(len(entries) * fraction)
    held: set[str] = set()
    for group in order[:-1] if fraction > 0 else ():
        if not held or len(held) + len(groups[group]) <= room:
            held.update(groups[group])
    return held


def read_list(path: Path) -> list[str]:
    """The lines of a list, stripped, without empty ones.

    Raises:
        DataError: it is missing or no text.
    """
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is missing or no text: put the publisher's there") from error
