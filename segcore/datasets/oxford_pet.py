"""Oxford-IIIT Pet: cats and dogs of 37 breeds, each with a trimap of pet, background and border.

References: Parkhi et al., CVPR 2012; www.robots.ox.ac.uk/~vgg/data/pets. MD5 as torchvision's.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segcore.data.codec import encode_mask
from segcore.data.labels import LabelError, read_labels
from segcore.data.sample import BACKGROUND, DatasetInfo, Flaw, Objects, Sample
from segcore.datasets.archive import Archive
from segcore.datasets.base import DataSource
from segcore.datasets.palette import make_palette
from segcore.datasets.publication import Publication, tail
from segcore.datasets.published import Entry, PublishedDataset, read_list
from segcore.errors import DataError

PET, GROUND, BORDER = 1, 2, 3  # values of a trimap

SPECIES = ("cat", "dog")
# In the order of their ids, 1..37, in the lists; by their files' names.
BREEDS = (
    "Abyssinian", "american_bulldog", "american_pit_bull_terrier", "basset_hound", "beagle",
    "Bengal", "Birman", "Bombay", "boxer", "British_Shorthair", "chihuahua", "Egyptian_Mau",
    "english_cocker_spaniel", "english_setter", "german_shorthaired", "great_pyrenees", "havanese",
    "japanese_chin", "keeshond", "leonberger", "Maine_Coon", "miniature_pinscher", "newfoundland",
    "Persian", "pomeranian", "pug", "Ragdoll", "Russian_Blue", "saint_bernard", "samoyed",
    "scottish_terrier", "shiba_inu", "Siamese", "Sphynx", "staffordshire_bull_terrier",
    "wheaten_terrier", "yorkshire_terrier",
)  # fmt: skip

CLASSES = {
    "pet": (BACKGROUND, "pet"),
    "species": (BACKGROUND, *SPECIES),
    "breed": (BACKGROUND, *BREEDS),
}

_URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"

PUBLICATION = Publication(
    name="oxford_pet",
    page="https://www.robots.ox.ac.uk/~vgg/data/pets",
    archives=(
        Archive(
            file="images.tar.gz",
            url=f"{_URL}/images.tar.gz",
            select=tail(r"images/\w+\.jpg"),
            packed="md5:5c4f3ee8e5d25df40f4fd59a7f44e54c",
        ),
        Archive(
            file="annotations.tar.gz",
            url=f"{_URL}/annotations.tar.gz",
            select=tail(r"annotations/(?:trimaps/\w+\.png|(?:trainval|test)\.txt)"),
            packed="md5:95a8c909bbe2e81eed6a22bccdf3f68f",
        ),
    ),
    counts={"trainval": 3_680, "test": 3_669},
    roles={"trainval": "train", "test": "test"},
    marker="annotations",
    tops=("oxford-iiit-pet",),
    layout="images/*.jpg, annotations/trimaps/*.png and annotations/{trainval,test}.txt",
)


@dataclass(frozen=True)
class Trimap:
    """A trimap whose pet is of a class.

    Args:
        file: the trimap.
        category: class index of the pet.
        info: what its values mean where the class is 1.
    """

    file: Path
    category: int
    info: DatasetInfo

    def read(self) -> Objects:
        """Read the mask; there are no instances."""
        try:
            mask = read_labels(self.file.read_bytes(), self.info)
        except (OSError, LabelError) as error:
            fix = "replace the file by an intact copy"
            return Objects(flaws=(Flaw(str(self.file), "unreadable mask", str(error), fix),))
        return Objects(None, encode_mask(np.where(mask == 1, np.uint8(self.category), mask)))


class OxfordPet(PublishedDataset):
    """Oxford-IIIT Pet, semantic: 3,680 training and 3,669 test images; the border is ignored.

    Option `classes`: pet (and background), species (cat, dog) or breed (37 of them).
    """

    options = ("classes",)

    def __init__(self, source: DataSource) -> None:
        super().__init__(source)
        self.classes = self._choice("classes", tuple(CLASSES))

    @property
    def publication(self) -> Publication:
        return PUBLICATION

    def list_entries(self, root: Path) -> list[Entry]:
        """In the order of the lists: lines "name breed species number".

        Raises:
            DataError: a line is of another form.
        """
        entries = []
        for split in PUBLICATION.roles:
            listing = root / "annotations" / f"{split}.txt"
            for line in read_list(listing):
                name, *numbers = line.split()
                if len(numbers) != 3 or not all(map(str.isdecimal, numbers)):
                    raise DataError(f"{listing} has {line!r}: a line is name breed species number")
                files = (root / "annotations" / "trimaps" / f"{name}.png",)
                facts = (int(numbers[0]), int(numbers[1]))
                image = root / "images" / f"{name}.jpg"
                entries.append(Entry(split, name, image, files, facts=facts))
        return entries

    def describe(self) -> DatasetInfo:
        classes = CLASSES[self.classes]
        return DatasetInfo(
            name="oxford_pet",
            version="1",
            classes=classes,
            palette=make_palette(len(classes)),
            mask_values={PET: 1, GROUND: 0, BORDER: 255} if self.classes == "pet" else {},
        )

    def sample(self, entry: Entry, split: str) -> Sample:
        breed, species = entry.facts
        trimap = entry.labels[0]
        if self.classes == "pet":
            return Sample(entry.name, split, entry.image, trimap)
        category = species if self.classes == "species" else breed
        objects = Trimap(trimap, category, _TRIMAP)
        return Sample(entry.name, split, entry.image, objects=objects)


_TRIMAP = DatasetInfo(
    name="oxford_pet",
    version="1",
    classes=CLASSES["pet"],
    palette=make_palette(2),
    mask_values={PET: 1, GROUND: 0, BORDER: 255},
)
