"""Which split of a dataset judges models, and which of its images can."""

from typing import Any

from segcore.errors import DataError
from segcore.tasks.kind import Kind

JUDGES = ("test", "val")
"""Splits that may judge a model, the better first: the best epoch was chosen on `val`."""


def judging(dataset: Any, kind: Kind) -> tuple[str, list[int]]:
    """The split that judges models, and its rows with labels of a kind: test, else val.

    Raises:
        DataError: neither has any.
    """
    for split in JUDGES:
        rows = labelled(dataset, kind, split)
        if rows:
            return split, rows
    counts = [len(dataset.split(split)) for split in JUDGES]
    raise DataError(
        f"the test split of {dataset.path} has {counts[0]} images, val {counts[1]}, and no label: "
        "give test some (test.txt, a test folder, or data.test_fraction) and run the prepare stage"
    )


def has_label(dataset: Any, kind: Kind, split: str) -> bool:
    """Whether any image of a split has a label of the kind."""
    found, targets = dataset.split(split), kind.targets(dataset)
    return any(targets.is_labelled(found.read(index)) for index in range(len(found)))


def labelled(dataset: Any, kind: Kind, split: str) -> list[int]:
    """Rows of a split that have a label of the kind."""
    found, targets = dataset.split(split), kind.targets(dataset)
    return [index for index in range(len(found)) if targets.is_labelled(found.read(index))]
