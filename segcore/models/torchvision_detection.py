"""torchvision's Mask R-CNNs under our contract: images come normalised and keep their size.

Imports torchvision's detection package (seconds), so only the builder of such a model imports it.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from segcore.encoders.first_conv import adapt_first_conv
from segcore.models.detection.images import Preparation, Target


class PlainTransform(GeneralizedRCNNTransform):  # type: ignore[misc]
    """Batches images without normalising or resizing them; leaves out crowds.

    Args:
        in_channels: channels of the images.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__(1, 1, [0.0] * in_channels, [1.0] * in_channels)
        self.plain = Preparation(in_channels)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> tuple[Any, Any]:
        batch, prepared = self.plain(images, targets, training=self.training)
        return ImageList(batch.tensor, batch.sizes), prepared if targets is not None else None


def build(
    name: str, num_classes: int, in_channels: int, pretrained: bool, options: dict[str, Any]
) -> nn.Module:
    """torchvision's instance model `name` from scratch (or ImageNet's backbone)."""
    model: nn.Module = get_model(
        name,
        weights=None,
        weights_backbone="DEFAULT" if pretrained else None,
        num_classes=num_classes,
        **options,
    )
    adapt_first_conv(model, in_channels, keep_weights=pretrained)
    model.transform = PlainTransform(in_channels)
    return model
