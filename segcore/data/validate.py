"""Find what is wrong with a dataset before anything is trained on it.

`inspect_sample` (inspection.py) looks at one sample alone, in any process; `cross_check` at what
only shows in the whole dataset. Each fault names the file, the value found and what to do about
it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segcore.data.inspection import FIXES, Fault, Inspection, file_name
from segcore.data.sample import DatasetInfo, Sample

KEEP_FIRST = ("test", "val", "train", "unlabelled")
MAX_PROPOSED = 16


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
    assumed = [Fault(info.name, "train", *what, "warning") for what in info.assumptions]
    checked = CrossCheck(assumed)
    _check_ids(samples, checked)
    _check_duplicates(samples, found, checked)
    _check_values(samples, found, info, checked)
    _check_depth(samples, found, info, checked)
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
    mapping = "" if mapped else _propose(union, info)
    for row, (sample, inspection) in enumerate(zip(samples, found, strict=True)):
        wrong = sorted(set(inspection.source_values) - known)
        if binary and 255 in inspection.source_values:
            what = ("binary mask 0/255", "0 and 255", FIXES["binary mask 0/255"])
            checked.reject(row, sample, sample.mask, *what)
        elif wrong:
            what = (
                "class id out of range",
                ", ".join(map(str, wrong[:10])),
                f"use 0..{info.num_classes - 1} or {info.ignore_index} (ignored), "
                f"or name more classes{mapping}",
            )
            checked.reject(row, sample, sample.mask, *what)


def _propose(union: set[int], info: DatasetInfo) -> str:
    """A mapping of few, scattered mask values to classes, ready to be pasted."""
    if not 2 <= len(union) <= MAX_PROPOSED:
        return ""
    classes = sorted(union - {info.ignore_index})
    mapping = {value: index for index, value in enumerate(classes)}
    mapping |= {value: value for value in union if value == info.ignore_index}
    return f"; or, if each value is a class, set data.options.mask_values: {mapping}"


def _check_depth(
    samples: Sequence[Sample],
    found: Sequence[Inspection],
    info: DatasetInfo,
    checked: CrossCheck,
) -> None:
    """Warn of images whose lower bits no reader here gives: one line for all of them."""
    cut = [sample for sample, inspection in zip(samples, found, strict=True) if inspection.cut]
    if cut:
        value = f"{len(cut)} images, first {file_name(cut[0].image, cut[0])}"
        fix = "only their upper 8 bits are used: save them as PNG, or scale them to 8 bits"
        fault = Fault(info.name, cut[0].split, "16-bit colour image", value, fix, "warning")
        checked.faults.append(fault)


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
        if row in checked.rejected or inspection.failed:
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
