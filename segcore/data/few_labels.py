"""Hide masks of a dataset: what would it be worth with fewer labels?

Hidden images go to the split 'unlabelled' before shards are written. So nothing that is derived
from labels (statistics, loss weights, crops by class, the plan) can know what is hidden, the
shards' digest tells the experiments apart, and any model trains on what is left.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from segcore.data.encode import image_classes
from segcore.data.inspection import Inspection
from segcore.data.prepare import Validation
from segcore.data.sample import DatasetInfo, Sample
from segcore.errors import DataError, OptionError

HIDING_STREAM = 2


def hide_labels(
    validation: Validation,
    *,
    fraction: float | None = None,
    per_class: int | None = None,
    seed: int = 0,
) -> Validation:
    """Move training images to the split 'unlabelled', without mask and objects.

    Which classes an image has stays with it as image-level labels. Fewer labels are a subset of
    more of them under the same seed. Other splits stay as they are.

    Args:
        validation: of the whole dataset.
        fraction: share of the training images, in 0..1, that keep their labels; one at least.
        per_class: images of each class that keep their labels: the first so many that have it.
        seed: of the choice.

    Raises:
        OptionError: both are given, or one is out of range.
        DataError: no training image has a class, so that none can be chosen by class.
    """
    if fraction is None and per_class is None:
        return validation
    if fraction is not None and per_class is not None:
        raise OptionError(
            f"labelled_fraction is {fraction} and labelled_per_class is {per_class}: set one to "
            "null"
        )
    order = _order(validation, seed)
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise OptionError(f"labelled_fraction is {fraction}; it must be above 0, at most 1")
        kept = set(order[: max(1, math.ceil(round(fraction * len(order), 6)))])
    else:
        kept = _first_of_each_class(validation, order, per_class or 0)
    hidden = set(order) - kept
    pairs = [
        _hide(sample, found, validation.info) if row in hidden else (sample, found)
        for row, (sample, found) in enumerate(
            zip(validation.samples, validation.found, strict=True)
        )
    ]
    return replace(
        validation,
        samples=tuple(sample for sample, _ in pairs),
        found=tuple(found for _, found in pairs),
    )


def _order(validation: Validation, seed: int) -> list[int]:
    """Training rows, shuffled by the seed alike on every machine."""
    rows = [row for row, sample in enumerate(validation.samples) if sample.split == "train"]
    bits = np.random.Philox(np.random.SeedSequence([HIDING_STREAM, seed]))
    return [rows[int(index)] for index in np.argsort(bits.random_raw(len(rows)), kind="stable")]


def _first_of_each_class(validation: Validation, order: Sequence[int], count: int) -> set[int]:
    if count < 1:
        raise OptionError(f"labelled_per_class is {count}; it must be at least 1")
    chosen: dict[int, list[int]] = {}
    for row in order:
        sample, found = validation.samples[row], validation.found[row]
        for index in _classes(sample, found, validation.info) or ():
            if len(chosen.setdefault(index, [])) < count:
                chosen[index].append(row)
    if not chosen:
        raise DataError(
            f"no training image of {validation.info.name} has a class: labelled_per_class has "
            "nothing to choose by, set it to null"
        )
    return {row for rows in chosen.values() for row in rows}


def _classes(sample: Sample, found: Inspection, info: DatasetInfo) -> tuple[int, ...] | None:
    if sample.labels is None and found.values is None:
        sample, _ = sample.resolve()  # the objects' files tell
    return image_classes(sample, found, info)


def _hide(sample: Sample, found: Inspection, info: DatasetInfo) -> tuple[Sample, Inspection]:
    labels = _classes(sample, found, info)
    bare = replace(
        sample, split="unlabelled", mask=None, instances=None, objects=None, labels=labels
    )
    return bare, replace(found, values=None, source_values=(), luma=None, shapes=(), objects=None)
