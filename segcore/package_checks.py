"""What a package from elsewhere may ask for: bounded before anything is built or read."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

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


class Bounded(TorchFunctionMode):
    """Count the bytes of the tensors that are created, and refuse to create more than `most`.

    Args:
        most: bytes.
        weights: the file that is named in the refusal.
    """

    CREATE = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye)
    COPY = (
        torch.Tensor.clone,
        torch.empty_like,
        torch.zeros_like,
        torch.ones_like,
        torch.full_like,
        torch.rand_like,
        torch.randn_like,
    )

    def __init__(self, most: float, weights: Path) -> None:
        super().__init__()
        self.most, self.weights = most, weights
        self.bytes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.CREATE:
            size = kwargs.get("size", args[0] if args else ())
            shape = args if isinstance(size, int) else size
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            if func is torch.eye and len(args) == 1:
                shape = (*args, *args)
            self._count(math.prod(map(int, shape)) * dtype.itemsize)
        elif func in self.COPY:
            self._count(args[0].numel() * args[0].element_size())
        return func(*args, **kwargs)

    def _count(self, more: int) -> None:
        self.bytes += more
        if self.bytes > self.most:
            raise _unlike(self.weights, self.bytes)


def build_bounded(build: Callable[[], nn.Module], weights: Path) -> nn.Module:
    """Build a model, but none that is much larger or smaller than the file of its weights.

    It is refused before its memory is asked for. (Built on the device "meta" first, it would be
    refused as early; but torch imports its compiler for that, four seconds of every package.)

    Raises:
        PackageError: they cannot belong together.
    """
    found = weights.stat().st_size
    most = 4 * found + SLACK
    with Bounded(most, weights):
        model = build()
    needed = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    if needed > most or found > 8 * needed + SLACK:
        raise _unlike(weights, needed)
    return model


def _unlike(weights: Path, needed: int) -> PackageError:
    return PackageError(
        f"{weights} has {weights.stat().st_size} bytes, the model that is described has {needed} "
        "or more: copy the package again, or do not trust where it came from"
    )
