"""GoogLeNet as published: no batch norm, 5x5 branches; torchvision's has both changed.

Reference: Szegedy et al. 2015, arXiv:1409.4842, Table 1.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

# Width of each branch: 1x1; reduction and 3x3; reduction and 5x5; projection after the pooling.
INCEPTIONS = {
    "inception3a": (64, (96, 128), (16, 32), 32),
    "inception3b": (128, (128, 192), (32, 96), 64),
    "maxpool3": None,
    "inception4a": (192, (96, 208), (16, 48), 64),
    "inception4b": (160, (112, 224), (24, 64), 64),
    "inception4c": (128, (128, 256), (24, 64), 64),
    "inception4d": (112, (144, 288), (32, 64), 64),
    "inception4e": (256, (160, 320), (32, 128), 128),
    "maxpool4": None,
    "inception5a": (256, (160, 320), (32, 128), 128),
    "inception5b": (384, (192, 384), (48, 128), 128),
}


def conv_relu(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
) -> nn.Sequential:
    """A convolution that keeps the size (over its stride), He-normal, and a ReLU."""
    padding = kernel_size // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=padding)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.ReLU(inplace=True))


class Inception(nn.Module):
    """Four branches side by side (Fig. 2b).

    Args:
        in_channels: of the input.
        one: width of the 1x1 branch.
        three: widths of the reduction and of the 3x3.
        five: widths of the reduction and of the 5x5.
        pooled: width of the projection after the 3x3 max-pooling.

    Shape:
        x: [N, in_channels, H, W]
        returns: [N, one + three[1] + five[1] + pooled, H, W]
    """

    def __init__(
        self, in_channels: int, one: int, three: tuple[int, int], five: tuple[int, int], pooled: int
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            (
                conv_relu(in_channels, one, 1),
                nn.Sequential(conv_relu(in_channels, three[0], 1), conv_relu(*three, 3)),
                nn.Sequential(conv_relu(in_channels, five[0], 1), conv_relu(*five, 5)),
                nn.Sequential(nn.MaxPool2d(3, 1, padding=1), conv_relu(in_channels, pooled, 1)),
            )
        )
        self.out_channels = one + three[1] + five[1] + pooled

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def halve() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, 2, ceil_mode=True)


def trunk(name: str) -> nn.Sequential:
    """Everything before the average pooling, without the auxiliary classifiers."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=conv_relu(3, 64, 7, stride=2),
        maxpool1=halve(),
        norm1=nn.LocalResponseNorm(5),
        conv2=conv_relu(64, 64, 1),
        conv3=conv_relu(64, 192, 3),
        norm2=nn.LocalResponseNorm(5),
        maxpool2=halve(),
    )
    channels = 192
    for layer, widths in INCEPTIONS.items():
        if widths is None:
            layers[layer] = halve()
        else:
            layers[layer] = block = Inception(channels, *widths)
            channels = block.out_channels
    return nn.Sequential(layers)
