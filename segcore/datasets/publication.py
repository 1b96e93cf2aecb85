"""Archives of a published dataset: which there are, and how they are had, verified and unpacked."""

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from segcore.data.atomic import new_folder
from segcore.datasets.archive import Archive, fetch, in_mirror
from segcore.datasets.base import DataSource, Progress
from segcore.datasets.unpack import Select, unpack
from segcore.errors import DataError


@dataclass(frozen=True)
class Publication:
    """Where a dataset comes from and what belongs to it.

    Args:
        name: of the dataset.
        page: the address at which its publisher offers it.
        archives: that hold it, under the names that the publisher gives them.
        counts: publisher's split -> number of its images.
        roles: publisher's split -> ours.
        marker: a path that every unpacked copy has.
        tops: folders, in the one that is named, in which an unpacked copy may begin.
        layout: what an unpacked copy holds, in words.
    """

    name: str
    page: str
    archives: tuple[Archive, ...]
    counts: Mapping[str, int]
    roles: Mapping[str, str]
    marker: str
    layout: str
    tops: tuple[str, ...] = ()


def tail(pattern: str) -> Select:
    """A selection of an archive's files by what their paths end with, whatever they begin with.

    Args:
        pattern: regular expression of the part that is kept.
    """
    match_end = re.compile(rf"(?:.*?/)??({pattern})")

    def select(name: str) -> str | None:
        match = match_end.fullmatch(name.removeprefix("./"))
        return match[1] if match else None

    return select


def install(publication: Publication, source: DataSource, progress: Progress) -> None:
    """Unpack all archives into `source.raw`, archives in them too.

    Raises:
        DataError: one cannot be had, or is not what its publisher gives out.
    """
    _check_login(publication, source)
    with new_folder(source.raw) as folder:
        for archive in publication.archives:
            packed = in_mirror(archive, source) or fetch(archive, source, progress)
            _check_packed(packed, archive)
            unpack(packed, folder, archive.select, progress)
            for inner in sorted(folder.rglob("*.zip")):
                unpack(inner, inner.parent, lambda name: name, progress)
                inner.unlink()
    shutil.rmtree(source.raw.with_name(f".{source.raw.name}.download"), ignore_errors=True)


def _check_login(publication: Publication, source: DataSource) -> None:
    """Refuse before anything is fetched where an archive is missing that no address gives."""
    wanted = [a.file for a in publication.archives if not a.url and in_mirror(a, source) is None]
    if wanted:
        place = source.mirror or "a folder that you name as the mirror (SEGCORE_MIRROR)"
        raise DataError(
            f"{publication.name} cannot be fetched without a login: get {', '.join(wanted)} from "
            f"{publication.page} and put them into {place}; or unpack them and set data.path to "
            f"the folder with {publication.layout}"
        )


def _check_packed(packed: Path, archive: Archive) -> None:
    """Compare an archive with the digest that it is known to have."""
    kind, _, expected = archive.packed.partition(":")
    if not expected:
        return
    with packed.open("rb") as stream:
        found = hashlib.file_digest(stream, kind).hexdigest()
    if found != expected:
        raise DataError(
            f"{packed} is not what its publisher gives out: {kind} {found}, expected {expected}. "
            "Replace it by an intact copy, or remove it"
        )
