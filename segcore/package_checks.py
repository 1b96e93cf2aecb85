"""What a package from elsewhere may ask for: bounded before anything is built or read."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segcore.errors import PackageError
from segcore.schema import ANY, NUMBER

MAX_DESCRIPTION = 64 * 2**20
MAX_OPTION = 100_000  # no option of an architecture is a larger number
MAX_NESTED = 64
SLACK = 2**20  # bytes of a weights file that are no weights

DESCRIPTION_SHAPE = {
    "format": int,
    "architecture": str,
    "num_classes": int,
    "in_channels": int,
    "classes": [str],
    "palette": [[int]],
    "mean": [NUMBER],
    "std": [NUMBER],
    "options": {str: ANY},
    "ignore_index": int,
    "input_size": ([int], None),
    "things": [bool],
    "task": str,
    "dataset_name": str,
    "dataset_digest": str,
    "metrics": {str: (*NUMBER, None)},
    "versions": {str: str},
    "extra": {str: ANY},
    "weights_sha256": str,
}


def check_options(value: Any, where: str, depth: int = 0) -> None:
    """Refuse options that would build without end: huge numbers, long lists, weights by name.

    Raises:
        ValueError: names the option.
    """
    if isinstance(value, (int, float)) and not abs(value) <= MAX_OPTION:
        raise ValueError(f"{where} is {value!r}, at most {MAX_OPTION} is built")
    entries: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    for number, (key, item) in enumerate(entries):
        if number >= MAX_NESTED or depth >= 8:
            raise ValueError(f"{where} has more entries than any option takes")
        if key in ("pretrained", "weights") and item:
            raise ValueError(f"{where}.{key} is {item!r}: a package brings its own weights")
        check_options(item, f"{where}.{key}", depth + 1)


def check_size(build: Callable[[], nn.Module], weights: Path) -> None:
    """Build a model without memory, and compare its size with that of its weights.

    One that needs values while it is built (a backbone from elsewhere may; none of ours, and none
    that was tried of torchvision's and timm's) is not compared: `check_options` alone bounds it.

    Raises:
        PackageError: they cannot belong together.
    """
    try:
        with torch.device("meta"):
            model = build()
    except NotImplementedError:
        return
    needed = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    found = weights.stat().st_size
    if needed > 4 * found + SLACK or found > 8 * needed + SLACK:
        raise PackageError(
            f"{weights} has {found} bytes, the model that is described has {needed}: "
            "copy the package again, or do not trust where it came from"
        )
