"""What a dataset is made of: `DatasetInfo` describes it, `Sample` is one image with its labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

SPLITS = ("train", "val", "test", "unlabelled")
BACKGROUND = "background"


@dataclass(frozen=True, slots=True)
class Instance:
    """One object of a thing class, as COCO describes it.

    Args:
        category: class index in 0..num_classes-1.
        bbox: (x, y, width, height) in pixels of the image.
        area: number of pixels.
        iscrowd: the mask covers a group that was not separated.
        counts: the mask as compressed COCO run-length encoding (column-major, image-sized).
    """

    category: int
    bbox: tuple[float, float, float, float]
    area: float
    counts: str
    iscrowd: bool = False


@dataclass(frozen=True, slots=True)
class Flaw:
    """What an `ObjectSource` found wrong in its files.

    Args:
        file: in which it is.
        fault: what is wrong.
        value: what was found.
        fix: what to do.
        severity: "error" (the sample is rejected) or "warning".
    """

    file: str
    fault: str
    value: str
    fix: str
    severity: str = "error"


@dataclass(frozen=True, slots=True)
class Objects:
    """What an `ObjectSource` read.

    Args:
        instances: objects of the image; None where the files hold a mask alone.
        mask: encoded index map that follows from them; None where the sample has its own.
        flaws: of the files; objects with an error are left out of `instances`.
    """

    instances: tuple[Instance, ...] | None = ()
    mask: bytes | None = None
    flaws: tuple[Flaw, ...] = ()


class ObjectSource(Protocol):
    """Files from which a sample's objects are read later, in any process: it can be pickled."""

    @property
    def file(self) -> Path:
        """What faults are said of."""

    def read(self) -> Objects:
        """Read everything; what is wrong becomes a flaw, never an exception."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a dataset, by reference: cheap to yield, read later and in parallel.

    Args:
        id: unique in the dataset; also the stem of what is written for it. Path-safe.
        split: one of `SPLITS`.
        image: path of an encoded image (PNG, JPEG, TIFF, ...), or its encoded bytes.
        mask: path or encoded bytes of the label map, in the encoding that `DatasetInfo` names;
            None if unlabelled.
        instances: objects of the image; None where the dataset has none.
        labels: image-level classes, for weak supervision; None to derive them from the mask.
        objects: what gives `instances`, and the mask where there is none; None where they are
            given, or the dataset has none.
    """

    id: str
    split: str
    image: Path | bytes
    mask: Path | bytes | None = None
    instances: tuple[Instance, ...] | None = None
    labels: tuple[int, ...] | None = None
    objects: ObjectSource | None = None

    def resolve(self) -> tuple["Sample", tuple[Flaw, ...]]:
        """This sample with the instances and the mask of `objects`, and what is wrong there."""
        if self.objects is None:
            return self, ()
        found = self.objects.read()
        mask = self.mask if found.mask is None else found.mask
        return replace(self, instances=found.instances, mask=mask), found.flaws


def tasks_of(
    classes: tuple[str, ...], things: tuple[bool, ...], *, instances: bool
) -> tuple[str, ...]:
    """What a dataset has labels for, "semantic" first.

    Args:
        classes: names in index order; one called "background" is no stuff.
        things: per class, whether it is a thing.
        instances: whether its samples have objects.
    """
    if not instances:
        return ("semantic",)
    named = zip(classes, things, strict=True)
    stuff = any(not thing and name.lower() != BACKGROUND for name, thing in named)
    return ("semantic", "instance", *(["panoptic"] if stuff and any(things) else []))


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What holds for every sample of a dataset; travels in shard metadata and model packages.

    Args:
        name: the registry name is `segcore-<name>`.
        version: changes when the same source would give other shards.
        tasks: what it has labels for: "semantic", "instance", "panoptic".
        classes: names in index order; without the ignored index.
        palette: one (r, g, b) in 0..255 per class.
        ignore_index: the value of pixels that count nowhere; may lie outside 0..255 range of use.
        things: per class, whether it is a thing (countable) or stuff.
        mask_values: source pixel value -> class index (or ignore_index), where a grey source mask
            is not already an index map (ISBI EM: {0: 0, 255: 1}). Empty: values are indices.
        mask_colors: source (r, g, b) -> class index, where masks are RGB pictures. Empty: they
            are not.
        assumptions: what the adapter took for granted, each as (what, value found, how to
            overrule): warnings of validation.
    """

    name: str
    version: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_index: int = 255
    tasks: tuple[str, ...] = ("semantic",)
    things: tuple[bool, ...] = ()
    mask_values: Mapping[int, int] = field(default_factory=dict)
    mask_colors: Mapping[tuple[int, int, int], int] = field(default_factory=dict)
    assumptions: tuple[tuple[str, str, str], ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.classes)
