"""Any timm network with `features_only` as an encoder; timm is an optional extra."""

import torch
from torch import Tensor

from segcore.encoders.base import Encoder
from segcore.errors import OptionError


class TimmEncoder(Encoder):
    """A timm feature pyramid under the names of `segcore.encoders.Encoder`.

    Args:
        name: timm's model name.
        in_channels: channels of the images; timm adapts the first layer.
        output_stride: 8, 16 or 32, where the network can be dilated.
        pretrained: timm's weights, through its own cache.

    Shape:
        x: [N, in_channels, H, W]
        returns: list of [N, out_channels[i], H / strides[i], W / strides[i]]

    Raises:
        OptionError: timm is absent, does not know the network, or cannot build it so.
    """

    def __init__(
        self, name: str, *, in_channels: int, output_stride: int, pretrained: bool
    ) -> None:
        try:
            import timm
        except ImportError as error:
            raise OptionError(
                f"backbone 'timm:{name}' needs timm: pip install 'segcore[timm]'"
            ) from error
        # Some networks refuse the key even at the stride they have.
        stride = {} if output_stride == 32 else {"output_stride": output_stride}
        try:
            body = timm.create_model(
                name, features_only=True, in_chans=in_channels, pretrained=pretrained, **stride
            )
        except Exception as error:  # timm raises many kinds, a network error among them
            raise OptionError(
                f"timm cannot build {name!r} with output_stride={output_stride}, "
                f"pretrained={pretrained}: {error}"
            ) from error
        info = body.feature_info
        super().__init__(in_channels, info.channels(), info.reduction())
        self.body = body

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.body(x)
        channels_last = [f.shape[1] != c for f, c in zip(features, self.out_channels, strict=True)]
        if any(channels_last):
            features = [torch.movedim(feature, -1, 1) for feature in features]
        return features
