"""Read one sample completely: what is wrong with it, and what it holds."""

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segcore.data.codec import (
    Pixels,
    is_deep,
    is_grey,
    loses_low_bits,
    read_image,
    resize_image,
    resize_mask,
    upright,
)
from segcore.data.labels import LabelError, read_labels
from segcore.data.objects import ObjectFacts, check_instances, measure_objects
from segcore.data.sample import SPLITS, DatasetInfo, Sample
from segcore.data.shapes import ClassShape, measure_shapes
from segcore.errors import DataError


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    Args:
        file: the file, or the dataset's name where it concerns no single file.
        split: of the sample.
        fault: what is wrong.
        value: what was found.
        fix: what to do.
        severity: "error" (the sample is rejected) or "warning".
    """

    file: str
    split: str
    fault: str
    value: str
    fix: str
    severity: str = "error"


@dataclass(frozen=True, slots=True)
class Inspection:
    """What one sample holds, as far as it could be read, at the size in which it is stored.

    Args:
        faults: of this sample alone.
        source_sha256: of the image's bytes; "" if there is none.
        grey: the image has one channel.
        size: (height, width).
        sums, squares: per channel (one if grey, else three) over all pixels, exact.
        values: pixels of each value 0..255 of the mask after mapping; None if unlabelled.
        source_values: values of the source's mask before resizing, sorted.
        deep: the image has more than 8 bits per channel.
        cut: of these, only the upper 8 could be read.
        luma: pixels of each grey value 0..255; None outside the training split.
        shapes: of the mask's classes, after resizing; none outside the training split.
        objects: what the instances measure, after resizing; None where there are none or they have
            an error, and outside the training split.
    """

    faults: tuple[Fault, ...]
    source_sha256: str = ""
    grey: bool = False
    size: tuple[int, int] = (0, 0)
    sums: tuple[int, ...] = ()
    squares: tuple[int, ...] = ()
    values: NDArray[np.int64] | None = None
    source_values: tuple[int, ...] = ()
    deep: bool = False
    cut: bool = False
    luma: NDArray[np.int32] | None = None
    shapes: tuple[ClassShape, ...] = ()
    objects: ObjectFacts | None = None

    @property
    def failed(self) -> bool:
        """Whether a fault is an error."""
        return any(fault.severity == "error" for fault in self.faults)


def file_name(source: Path | bytes | None, sample: Sample) -> str:
    """How faults call an image or mask."""
    if isinstance(source, Path):
        return str(source)
    made = sample.objects is not None and source is not sample.image
    return str(sample.objects.file) if made and sample.objects else sample.id


def read_bytes(source: Path | bytes) -> bytes:
    """The encoded bytes of an image or mask."""
    return source.read_bytes() if isinstance(source, Path) else source


def inspect_sample(
    sample: Sample, info: DatasetInfo, size: tuple[int, int] | None = None
) -> Inspection:
    """Read one sample completely.

    Args:
        sample: what the dataset yielded.
        info: of the dataset.
        size: (height, width) to which images will be brought; None: as they are.
    """
    faults: list[Fault] = []

    def add(source: Path | bytes | None, fault: str, value: str, fix: str) -> None:
        faults.append(Fault(file_name(source, sample), sample.split, fault, value, fix))

    if sample.split not in SPLITS:
        add(sample.image, "unknown split", sample.split, f"use one of {', '.join(SPLITS)}")
    if not sample.id or "/" in sample.id or sample.id.startswith("."):
        add(sample.image, "unusable id", sample.id, "rename the file")
    try:
        encoded = read_bytes(sample.image)
    except OSError as error:
        fix = "add the image, or remove its mask and its line in the lists"
        add(sample.image, "missing image", str(error.strerror), fix)
        return Inspection(tuple(faults))
    digest = hashlib.sha256(encoded).hexdigest()
    try:
        stored = read_image(encoded)
        image = upright(stored, encoded)
    except DataError as error:
        add(sample.image, "unreadable image", str(error), FIXES["unreadable image"])
        return Inspection(tuple(faults), digest)
    labels = _Labels(sample, info, (image.height, image.width), faults)
    found = _measure(image, labels.mask, sample, info, size)
    return replace(
        found,
        objects=labels.measure(size),
        faults=tuple(faults),
        source_sha256=digest,
        deep=is_deep(stored, encoded),
        cut=loses_low_bits(stored, encoded),
    )


class _Labels:
    """Mask and objects of a sample as far as they can be read, and their faults.

    Args:
        sample: of the dataset.
        info: of the dataset.
        size: (height, width) of the image.
        faults: to which those found are added.
    """

    def __init__(
        self, sample: Sample, info: DatasetInfo, size: tuple[int, int], faults: list[Fault]
    ) -> None:
        self.sample, flaws = sample.resolve()
        self.info = info
        self.size = size
        self.faults = faults
        for flaw in flaws:
            self._add(flaw.file, flaw.fault, flaw.value, flaw.fix, flaw.severity)
        self.mask = self._read_mask()

    def _add(self, file: str, fault: str, value: str, fix: str, severity: str = "error") -> None:
        self.faults.append(Fault(file, self.sample.split, fault, value, fix, severity))

    def _read_mask(self) -> Pixels | None:
        """The class indices; None if there are none or they cannot be read."""
        sample = self.sample
        if sample.mask is None:
            if sample.instances is None and sample.split != "unlabelled":
                image = file_name(sample.image, sample)
                self._add(image, "missing mask", "none of this stem", FIXES["missing mask"])
            return None
        name = file_name(sample.mask, sample)
        try:
            return read_labels(read_bytes(sample.mask), self.info, self.size)
        except OSError as error:
            self._add(name, "missing mask", str(error.strerror), FIXES["missing mask"])
        except LabelError as fault:
            self._add(name, fault.kind, fault.value, fault.fix)
        return None

    def measure(self, size: tuple[int, int] | None) -> ObjectFacts | None:
        """Check the instances; measure those of a training image at another size, or its own."""
        instances = self.sample.instances
        unread = self.sample.mask is not None and self.mask is None
        if instances is None or unread:
            return None
        before = len(self.faults)
        name = file_name(None if self.sample.objects else self.sample.image, self.sample)
        check_instances(instances, self.size, self.info, partial(self._add, name))
        if self.sample.split != "train" or any(
            fault.severity == "error" for fault in self.faults[before:]
        ):
            return None
        return measure_objects(instances, self.size, size)


FIXES = {
    "binary mask 0/255": "write 1 for 255, or set data.options.mask_values: {0: 0, 255: 1}",
    "unreadable image": "replace the file by an intact copy",
    "missing mask": "add the mask, or list the stem in unlabelled.txt",
}


def _measure(
    image: Image.Image,
    mask: Pixels | None,
    sample: Sample,
    info: DatasetInfo,
    size: tuple[int, int] | None,
) -> Inspection:
    """What image and mask hold, at the stored size."""
    source_values: tuple[int, ...] = ()
    grey = is_grey(image)
    if mask is not None:
        source_values = tuple(int(v) for v in np.flatnonzero(np.bincount(mask.ravel())))
    if size is not None:
        image = resize_image(image, size)
        mask = None if mask is None else resize_mask(mask, size)
    histogram = np.array(image.convert("L" if grey else "RGB").histogram(), dtype=np.int64)
    levels = np.arange(256, dtype=np.int64)
    channels = histogram.reshape(-1, 256)
    values = None if mask is None else np.bincount(mask.ravel(), minlength=256).astype(np.int64)
    training = sample.split == "train"
    shapes = []
    if training and mask is not None:
        shapes = measure_shapes(mask, info.num_classes, info.ignore_index, sample.id)
    return Inspection(
        faults=(),
        grey=grey,
        size=(image.height, image.width),
        sums=tuple(int(c @ levels) for c in channels),
        squares=tuple(int(c @ levels**2) for c in channels),
        values=values,
        source_values=source_values,
        luma=np.array(image.convert("L").histogram(), dtype=np.int32) if training else None,
        shapes=tuple(shapes),
    )
