"""What a dataset is made of: `DatasetInfo` describes it, `Sample` is one image with its labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SPLITS = ("train", "val", "test", "unlabelled")


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
    """

    id: str
    split: str
    image: Path | bytes
    mask: Path | bytes | None = None
    instances: tuple[Instance, ...] | None = None
    labels: tuple[int, ...] | None = None


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
