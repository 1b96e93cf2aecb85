"""A backbone as a feature pyramid."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

PROBE_SIZE = 128


class Encoder(nn.Module):
    """What every backbone offers.

    Args:
        in_channels: channels of the images.
        out_channels: channels of each feature map.
        strides: input size over feature size of each feature map, ascending unless dilated.

    Shape:
        x: [N, in_channels, H, W]
        returns: list of [N, out_channels[i], H / strides[i], W / strides[i]]
    """

    def __init__(
        self, in_channels: int, out_channels: Sequence[int], strides: Sequence[int]
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = list(out_channels)
        self.strides = list(strides)
        self.output_stride = self.strides[-1]


class TrunkEncoder(Encoder):
    """Runs the layers of a trunk in order and keeps the last feature map of each stride.

    Args:
        trunk: layers that each take the previous one's output.
        in_channels: as `Encoder`.
        taps: index of the layer after which each feature map is kept.
        out_channels: as `Encoder`.
        strides: as `Encoder`.
    """

    def __init__(
        self,
        trunk: nn.Sequential,
        *,
        in_channels: int,
        taps: Sequence[int],
        out_channels: Sequence[int],
        strides: Sequence[int],
    ) -> None:
        super().__init__(in_channels, out_channels, strides)
        self.trunk = trunk
        self.taps = tuple(taps)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for index, layer in enumerate(self.trunk):
            x = layer(x)
            if index in self.taps:
                features.append(x)
        return features


def probe(trunk: nn.Sequential) -> list[tuple[int, int]]:
    """(channels, stride) after each layer of a 3-channel trunk, from one small black image.

    On the CPU and not on the meta device, whose first use imports torch's compiler (3 s).
    """
    device = next(trunk.parameters()).device
    x = torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE, device=device)
    reached = []
    trunk.eval()
    with torch.no_grad():
        for layer in trunk:
            x = layer(x)
            reached.append((x.shape[1], 2 ** round(math.log2(PROBE_SIZE / x.shape[3]))))
    trunk.train()
    return reached


def pyramid(reached: Sequence[tuple[int, int]]) -> list[int]:
    """Index of the last layer of each stride."""
    following = [stride for _, stride in reached[1:]] + [0]
    return [i for i, (_, stride) in enumerate(reached) if stride != following[i]]
