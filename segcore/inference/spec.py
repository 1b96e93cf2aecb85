"""What a model package knows about its model: everything that inference needs beside weights."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from segcore.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class PackageSpec:
    """How a model was built, what it was trained on, and how its input is to be prepared.

    Args:
        architecture: a name of `segcore.list_models()`.
        options: keyword options that `create_model` received for it.
        num_classes: number of classes; the kind of task says how many outputs a model has.
        in_channels: channels of the input image: 1 grey, 3 RGB, 4 RGBA, or any other number.
        classes: class names in index order.
        palette: one (r, g, b) in 0..255 per class.
        ignore_index: mask value that counted nowhere in training.
        mean: per channel, of images scaled to 0..1.
        std: per channel, of images scaled to 0..1.
        input_size: (height, width) that images had in training; None: their own.
        things: per class, whether it is countable; empty where the dataset does not say.
        task: kind of `segcore.create_task`.
        dataset_name: dataset that it was trained on.
        dataset_digest: digest of the shards.
        metrics: figures of the final model on the validation split.
        versions: of segcore, torch and python; empty: filled in when the package is saved.
        extra: anything else worth keeping (git commit, loss, ...); JSON values only.

    Raises:
        OptionError: fields that contradict each other.
    """

    architecture: str
    num_classes: int
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    in_channels: int = 3
    options: Mapping[str, Any] = field(default_factory=dict)
    ignore_index: int = 255
    input_size: tuple[int, int] | None = None
    things: tuple[bool, ...] = ()
    task: str = "semantic"
    dataset_name: str = ""
    dataset_digest: str = ""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, length, expected in (
            ("classes", len(self.classes), self.num_classes),
            ("palette", len(self.palette), self.num_classes),
            ("mean", len(self.mean), self.in_channels),
            ("std", len(self.std), self.in_channels),
            ("things", len(self.things) or self.num_classes, self.num_classes),
        ):
            if length != expected:
                raise OptionError(
                    f"PackageSpec.{name} has {length} entries, expected {expected}: "
                    f"num_classes is {self.num_classes}, in_channels {self.in_channels}"
                )

    def to_json(self) -> dict[str, Any]:
        """Values that JSON has; a figure that is not finite becomes null."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "PackageSpec":
        """The spec that `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: these are not the values of a spec.
        """
        fields = dict(values)
        for key in ("classes", "mean", "std", "things"):
            fields[key] = tuple(fields[key])
        fields["palette"] = tuple((r, g, b) for r, g, b in fields["palette"])
        if fields["input_size"] is not None:
            height, width = fields["input_size"]
            fields["input_size"] = (int(height), int(width))
        return cls(**fields)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
