"""JSRT chest radiographs with SCR's outlines: lungs, heart and clavicles of 247 pictures.

References: Shiraishi et al., American Journal of Roentgenology 2000 (JSRT); van Ginneken et al.,
Medical Image Analysis 2006 (SCR: masks of 1024x1024, folds of odd and even numbers, the first
observer is the reference). Both need a registration.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segcore.data.atomic import write_file
from segcore.data.codec import encode_image, encode_mask, read_image, to_eight_bit
from segcore.data.sample import BACKGROUND, DatasetInfo, Flaw, Objects, Sample
from segcore.datasets.archive import Archive
from segcore.datasets.base import DataSource, Progress, silent
from segcore.datasets.palette import make_palette
from segcore.datasets.publication import Publication, tail
from segcore.datasets.published import Entry, PublishedDataset
from segcore.errors import DataError

# Painted in this order, since clavicles lie before the lungs. Right and left are the patient's.
PARTS = ("right lung", "left lung", "heart", "right clavicle", "left clavicle")
CLASSES = (BACKGROUND, *PARTS)

SIDE = 2_048  # of an .IMG file: big-endian words of 12 bits, no header; 0 is white
WHITE = 4_095
IMAGES = "All247images"

PUBLICATION = Publication(
    name="jsrt",
    page="http://db.jsrt.or.jp/eng.php and https://www.isi.uu.nl/Research/Databases/SCR",
    archives=(
        Archive(
            file="All247images.zip",
            url="",
            select=tail(r"All247images/JPC[LN]N\d+\.IMG"),
        ),
        Archive(
            file="scratch.zip",
            url="",
            select=tail(r"fold[12]/masks/[a-z ]+/JPC[LN]N\d+\.gif"),
            others=("scr.zip", "SCR.zip"),
        ),
    ),
    counts={"fold1": 124, "fold2": 123},
    roles={"fold1": "train", "fold2": "test"},
    marker="fold1/masks/heart",
    tops=("scratch", "scr/scratch", "SCR"),
    layout=(
        f"{IMAGES}/*.IMG and fold{{1,2}}/masks/{{left lung,right lung,heart,left clavicle,"
        "right clavicle}/*.gif"
    ),
)


@dataclass(frozen=True)
class ScrMasks:
    """The outlines of one picture, a binary mask for each of `PARTS`.

    Args:
        masks: in the order of `PARTS`.
    """

    masks: tuple[Path, ...]

    @property
    def file(self) -> Path:
        """The first mask."""
        return self.masks[0]

    def read(self) -> Objects:
        """Paint them over each other; there are no instances."""
        painted = None
        for index, file in enumerate(self.masks, start=1):
            try:
                bits = np.asarray(read_image(file.read_bytes()).convert("L")) > 0
            except (OSError, DataError) as error:
                fix = "replace it by an intact copy"
                return Objects(flaws=(Flaw(str(file), "unreadable mask", str(error), fix),))
            if painted is None:
                painted = np.zeros(bits.shape, dtype=np.uint8)
            if painted.shape != bits.shape:
                value, fix = f"{bits.shape} and {painted.shape}", "give all masks one size"
                return Objects(flaws=(Flaw(str(file), "size mismatch", value, fix),))
            painted[bits] = index
        return Objects(None, encode_mask(painted) if painted is not None else None)


class Jsrt(PublishedDataset):
    """JSRT with SCR's masks, semantic: five parts; one fold trains (124), the other tests (123).

    Pictures are brought to the size of the masks (means of 2x2 pixels), to 8 bits, and bones to
    white. Option `fold`: 1 or 2, the one that trains; published figures are means over both.
    """

    options = ("fold",)

    def __init__(self, source: DataSource) -> None:
        super().__init__(source)
        self._choice("fold", (1, 2))

    @property
    def publication(self) -> Publication:
        if self.source.options.get("fold", 1) == 1:
            return PUBLICATION
        return replace(PUBLICATION, roles={"fold2": "train", "fold1": "test"})

    def download(self, progress: Progress = silent) -> None:
        """Unpack or find the files, count them, and write pictures to `source.raw`/images.

        Raises:
            DataError: as the base; or a file holds another number of pixels.
        """
        super().download(progress)
        entries = self._present()
        for number, entry in enumerate(entries, start=1):
            if not self._picture(entry).is_file():
                write_file(self._picture(entry), read_radiograph(entry.image))
            progress("convert", number, len(entries))

    def _picture(self, entry: Entry) -> Path:
        return self.source.raw / "images" / f"{entry.name}.png"

    def list_entries(self, root: Path) -> list[Entry]:
        """By fold and name."""
        places = [base / IMAGES for base in (root, *root.parents[:2])]
        images = next((place for place in places if place.is_dir()), places[0])
        return [
            Entry(
                split=fold,
                name=heart.stem,
                image=images / f"{heart.stem}.IMG",
                labels=tuple(root / fold / "masks" / part / heart.name for part in PARTS),
            )
            for fold in PUBLICATION.counts
            for heart in sorted((root / fold / "masks" / "heart").glob("*.gif"))
        ]

    def describe(self) -> DatasetInfo:
        return DatasetInfo(
            name="jsrt", version="1", classes=CLASSES, palette=make_palette(len(CLASSES))
        )

    def sample(self, entry: Entry, split: str) -> Sample:
        return Sample(entry.name, split, self._picture(entry), objects=ScrMasks(entry.labels))


def read_radiograph(file: Path) -> bytes:
    """An .IMG file as an 8-bit grey PNG of half its height and width.

    Raises:
        DataError: it does not have 2048x2048 pixels.
    """
    words = np.fromfile(file, dtype=">u2")
    if words.size != SIDE * SIDE:
        raise DataError(f"{file} holds {words.size} pixels, expected {SIDE}x{SIDE}: replace it")
    film = words.reshape(SIDE // 2, 2, SIDE // 2, 2).astype(np.float32).mean(axis=(1, 3))
    bright = np.rint(WHITE - np.minimum(film, WHITE)).astype(np.uint16)
    return encode_image(to_eight_bit(bright)[:, :, None], "png")
