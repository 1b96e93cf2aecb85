"""ISBI 2012: neuronal membranes in 25 serial sections of electron microscopy, 512x512.

References: Cardona et al., PLoS Biology 2010; Arganda-Carreras et al., Frontiers in Neuroanatomy
2015. The problem of U-Net, Ronneberger et al. 2015, arXiv:1505.04597.
"""

import re
from collections.abc import Iterator

from segcore.data.sample import DatasetInfo, Sample
from segcore.datasets.archive import Archive, install
from segcore.datasets.base import DataSource, Progress, silent
from segcore.errors import DataError, OptionError

COMMIT = "b45af4d458437d8281cc218a07fd4380818ece4a"

# Neighbouring sections look alike, so splits are blocks, and the section between two blocks is
# left out (14 and 18).
BLOCKS = {"train": range(14), "val": range(15, 18), "test": range(19, 25)}

_SECTION = re.compile(r"(?:isbi_em|unet-[0-9a-f]+/data/membrane)/(train/(?:image|label)/\d+\.png)")


def _select(name: str) -> str | None:
    match = _SECTION.fullmatch(name.removeprefix("./"))
    return match.group(1) if match else None


ARCHIVE = Archive(
    file="isbi_em.zip",
    url=f"https://codeload.github.com/zhixuhao/unet/tar.gz/{COMMIT}",
    select=_select,
    # tree_digest of the 50 files.
    digest="18394f46c6ccad18369393b1fed86ac4c5f239003e39410a43357b0d219e7327",
    top="train",
    others=(f"unet-{COMMIT}.tar.gz",),
)


class IsbiEm:
    """ISBI 2012 EM, semantic: membrane (0 in the source) and cell (255) of consecutive sections."""

    def __init__(self, source: DataSource) -> None:
        if source.options:
            raise OptionError(f"isbi_em has no options, got {', '.join(source.options)}")
        self.source = source

    def download(self, progress: Progress = silent) -> None:
        """Unpack the archive of the mirror, or of the network, into `source.raw/train`."""
        install(ARCHIVE, self.source, progress)

    def info(self) -> DatasetInfo:
        return DatasetInfo(
            name="isbi_em",
            version=COMMIT[:12],
            classes=("membrane", "cell"),
            palette=((40, 40, 60), (236, 222, 190)),
            mask_values={0: 0, 255: 1},
        )

    def samples(self) -> Iterator[Sample]:
        """Sections in order, split by split.

        Raises:
            DataError: `download` has not run.
        """
        folder = self.source.raw / "train"
        if not folder.is_dir():
            raise DataError(f"{folder} is missing: run the download stage")
        for split, sections in BLOCKS.items():
            for section in sections:
                yield Sample(
                    id=f"section_{section:02d}",
                    split=split,
                    image=folder / "image" / f"{section}.png",
                    mask=folder / "label" / f"{section}.png",
                )
