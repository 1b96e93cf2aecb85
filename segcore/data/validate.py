"""Find what is wrong with a dataset before anything is trained on it.

`inspect_sample` looks at one sample alone, in any process; `cross_check` at what only shows in
the whole dataset. Each fault names the file, the value found and what to do about it.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segcore.data.codec import (
    DeepImageError,
    Pixels,
    is_grey,
    open_image,
    resize_image,
    resize_mask,
)
from segcore.data.labels import LabelError, read_labels
from segcore.data.sample import SPLITS, DatasetInfo, Sample
from segcore.errors import DataError

AddFault = Callable[[Path | bytes | None, str, str, str], None]

KEEP_FIRST = ("test", "val", "train", "unlabelled")


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
    """

    faults: tuple[Fault, ...]
    source_sha256: str = ""
    grey: bool = False
    size: tuple[int, int] = (0, 0)
    sums: tuple[int, ...] = ()
    squares: tuple[int, ...] = ()
    values: NDArray[np.int64] | None = None
    source_values: tuple[int, ...] = ()


def file_name(source: Path | bytes | None, sample: Sample) -> str:
    """How faults call an image or mask."""
    return str(source) if isinstance(source, Path) else sample.id


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
        image = open_image(encoded)
    except DataError as error:
        deep = isinstance(error, DeepImageError)
        kind = "16-bit image" if deep else "unreadable image"
        add(sample.image, kind, str(error), _FIXES[kind])
        return Inspection(tuple(faults), digest)
    mask = _read_mask(sample, info, (image.height, image.width), add)
    return _measure(image, mask, digest, size, faults)


def _read_mask(
    sample: Sample, info: DatasetInfo, size: tuple[int, int], add: AddFault
) -> Pixels | None:
    """The class indices of a sample; None if it has none or they cannot be read."""
    if sample.mask is None:
        if sample.instances is None and sample.split != "unlabelled":
            add(sample.image, "missing mask", "none of this stem", _FIXES["missing mask"])
        return None
    try:
        return read_labels(read_bytes(sample.mask), info, size)
    except OSError as error:
        add(sample.mask, "missing mask", str(error.strerror), _FIXES["missing mask"])
    except LabelError as fault:
        add(sample.mask, fault.kind, fault.value, fault.fix)
    return None


_FIXES = {
    "binary mask 0/255": "write 1 for 255, or set data.options.mask_values: {0: 0, 255: 1}",
    "16-bit image": "scale it to 8 bits per channel and save it again",
    "unreadable image": "replace the file by an intact copy",
    "missing mask": "add the mask, or list the stem in unlabelled.txt",
}


def _measure(
    image: Image.Image,
    mask: Pixels | None,
    digest: str,
    size: tuple[int, int] | None,
    faults: Iterable[Fault],
) -> Inspection:
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
    return Inspection(
        faults=tuple(faults),
        source_sha256=digest,
        grey=grey,
        size=(image.height, image.width),
        sums=tuple(int(c @ levels) for c in channels),
        squares=tuple(int(c @ levels**2) for c in channels),
        values=values,
        source_values=source_values,
    )


@dataclass
class CrossCheck:
    """Faults that show only in the whole dataset.

    Args:
        faults: of no single sample: warnings.
        rejected: row number of a sample -> its further faults.
    """

    faults: list[Fault] = field(default_factory=list)
    rejected: dict[int, list[Fault]] = field(default_factory=dict)

    def reject(self, row: int, sample: Sample, source: Path | bytes | None, *what: str) -> None:
        """Add an error (fault, value, fix) about a sample."""
        fault = Fault(file_name(source, sample), sample.split, *what)
        self.rejected.setdefault(row, []).append(fault)


def cross_check(
    samples: Sequence[Sample], found: Sequence[Inspection], info: DatasetInfo
) -> CrossCheck:
    """Compare samples with each other: ids, duplicates, class ids, empty classes and splits."""
    checked = CrossCheck()
    _check_ids(samples, checked)
    _check_duplicates(samples, found, checked)
    _check_values(samples, found, info, checked)
    _check_classes(samples, found, info, checked)
    return checked


def _check_ids(samples: Sequence[Sample], checked: CrossCheck) -> None:
    first: dict[str, Sample] = {}
    for row, sample in enumerate(samples):
        other = first.setdefault(sample.id, sample)
        if other is not sample:
            what = ("duplicate id", f"{sample.id} is also {file_name(other.image, other)}")
            checked.reject(row, sample, sample.image, *what, "rename one of the two files")


def _check_duplicates(
    samples: Sequence[Sample], found: Sequence[Inspection], checked: CrossCheck
) -> None:
    """Identical images: an error across splits, where one leaks into the other."""
    groups: dict[str, list[int]] = {}
    for row, inspection in enumerate(found):
        if inspection.source_sha256:
            groups.setdefault(inspection.source_sha256, []).append(row)
    for rows in groups.values():
        kept = min(rows, key=lambda row: _rank(samples[row].split))
        original = samples[kept]
        name = f"same bytes as {file_name(original.image, original)} ({original.split})"
        for row in rows:
            sample = samples[row]
            if row == kept:
                continue
            if sample.split != original.split:
                what = ("duplicate across splits", name, "remove it from one of the two splits")
                checked.reject(row, sample, sample.image, *what)
            else:
                fault = Fault(
                    file_name(sample.image, sample), sample.split, "duplicate image", name,
                    "remove one, unless it should count twice", "warning",
                )  # fmt: skip
                checked.faults.append(fault)


def _rank(split: str) -> int:
    return KEEP_FIRST.index(split) if split in KEEP_FIRST else len(KEEP_FIRST)


def _check_values(
    samples: Sequence[Sample],
    found: Sequence[Inspection],
    info: DatasetInfo,
    checked: CrossCheck,
) -> None:
    """Class ids that the dataset does not have, and masks of 0 and 255 that mean 0 and 1."""
    union = {value for inspection in found for value in inspection.source_values}
    known = {*range(info.num_classes), info.ignore_index}
    mapped = bool(info.mask_values or info.mask_colors)
    binary = union == {0, 255} and not mapped and info.num_classes != 1
    for row, (sample, inspection) in enumerate(zip(samples, found, strict=True)):
        wrong = sorted(set(inspection.source_values) - known)
        if binary and 255 in inspection.source_values:
            what = ("binary mask 0/255", "0 and 255", _FIXES["binary mask 0/255"])
            checked.reject(row, sample, sample.mask, *what)
        elif wrong:
            what = (
                "class id out of range",
                ", ".join(map(str, wrong[:10])),
                f"use 0..{info.num_classes - 1} or {info.ignore_index} (ignored), "
                "or name more classes",
            )
            checked.reject(row, sample, sample.mask, *what)


def _check_classes(
    samples: Sequence[Sample],
    found: Sequence[Inspection],
    info: DatasetInfo,
    checked: CrossCheck,
) -> None:
    """Warn of classes without training pixels and of splits without samples."""
    total = np.zeros(256, dtype=np.int64)
    splits = set()
    for row, (sample, inspection) in enumerate(zip(samples, found, strict=True)):
        if row in checked.rejected or inspection.faults:
            continue
        splits.add(sample.split)
        if sample.split == "train" and inspection.values is not None:
            total += inspection.values
    for index in range(info.num_classes):
        if index != info.ignore_index and total[index] == 0:
            value = f"{index} ({info.classes[index]})"
            fix = "add training images of it, or remove the class"
            checked.faults.append(Fault(info.name, "train", "empty class", value, fix, "warning"))
    for split in ("train", "val", "test"):
        if split not in splits:
            fix = f"put images into its {split} split"
            checked.faults.append(Fault(info.name, split, "empty split", "0", fix, "warning"))
