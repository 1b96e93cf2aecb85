"""What stages know of a trained model and of what it says, whatever kind of task it is of."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from segcore.inference.images import ImageArray
from segcore.inference.spec import PackageSpec


class AnyPrediction(Protocol):
    """What a model says of one image; everything else is its kind's."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...


class AnyPredictor(Protocol):
    """A trained model, ready for images."""

    spec: PackageSpec
    digest: str
    precision: str
    model: nn.Module

    def read(self, image: Any) -> ImageArray:
        """Any image as uint8 [H, W, in_channels]."""

    def __call__(self, images: Any, batch_size: int = 8) -> Sequence[Any]:
        """One prediction per image, in order; images of any kind and unlike sizes."""
