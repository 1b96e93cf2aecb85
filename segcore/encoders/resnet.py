"""ResNet, ResNeXt and Wide ResNet trunks, with torchvision's parameter names.

Written out here because importing torchvision costs seconds that most processes need not spend.

References: He et al. 2016, arXiv:1512.03385; Xie et al. 2017, arXiv:1611.05431;
Zagoruyko & Komodakis 2016, arXiv:1605.07146.
"""

from collections import OrderedDict

from torch import Tensor, nn

# name: (bottleneck blocks, blocks per stage, groups, width of a group at 64 channels)
LAYOUTS: dict[str, tuple[bool, tuple[int, int, int, int], int, int]] = {
    "resnet18": (False, (2, 2, 2, 2), 1, 64),
    "resnet34": (False, (3, 4, 6, 3), 1, 64),
    "resnet50": (True, (3, 4, 6, 3), 1, 64),
    "resnet101": (True, (3, 4, 23, 3), 1, 64),
    "resnet152": (True, (3, 8, 36, 3), 1, 64),
    "resnext50_32x4d": (True, (3, 4, 6, 3), 32, 4),
    "resnext101_32x8d": (True, (3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": (True, (3, 4, 23, 3), 64, 4),
    "wide_resnet50_2": (True, (3, 4, 6, 3), 1, 128),
    "wide_resnet101_2": (True, (3, 4, 23, 3), 1, 128),
}
DEEP = "_deep"  # suffix of the variants with PSPNet's stem of three 3x3 convolutions


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a short skip.

    Shape:
        x: [N, in_channels, H, W]
        returns: [N, channels, H / stride, W / stride]
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu(y + self.downsample(x))
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided, grouped), 1x1 convolutions with a short skip.

    Shape:
        x: [N, in_channels, H, W]
        returns: [N, 4 * channels, H / stride, W / stride]
    """

    def __init__(
        self, in_channels: int, channels: int, *, stride: int, groups: int, width: int
    ) -> None:
        super().__init__()
        hidden = channels * width // 64 * groups
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, 4 * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: Tensor = self.relu(y + self.downsample(x))
        return out


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def _stage(
    name: str, in_channels: int, channels: int, blocks: int, stride: int
) -> tuple[nn.Sequential, int]:
    bottleneck, _, groups, width = LAYOUTS[name.removesuffix(DEEP)]
    layers: list[nn.Module] = []
    for index in range(blocks):
        step = stride if index == 0 else 1
        if bottleneck:
            layers.append(
                Bottleneck(in_channels, channels, stride=step, groups=groups, width=width)
            )
            in_channels = 4 * channels
        else:
            layers.append(BasicBlock(in_channels, channels, stride=step))
            in_channels = channels
    return nn.Sequential(*layers), in_channels


def _stem(deep: bool) -> tuple[OrderedDict[str, nn.Module], int]:
    """One 7x7 convolution, or the three 3x3 ones of PSPNet's ResNet."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    shapes = [(3, 64, 3, 2), (64, 64, 3, 1), (64, 128, 3, 1)] if deep else [(3, 64, 7, 2)]
    for index, (before, after, kernel, stride) in enumerate(shapes, start=1):
        layers[f"conv{index}"] = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
        layers[f"bn{index}"] = nn.BatchNorm2d(after)
        layers["relu" if index == 1 else f"relu{index}"] = nn.ReLU(inplace=True)
    layers["maxpool"] = nn.MaxPool2d(3, 2, 1)
    return layers, shapes[-1][1]


def trunk(name: str) -> nn.Sequential:
    """Convolutional trunk of a ResNet (without pooling and fc), randomly initialised.

    Convolutions are He-normal over fan_out, batch norm starts as identity.
    """
    layers, in_channels = _stem(name.endswith(DEEP))
    for index, blocks in enumerate(LAYOUTS[name.removesuffix(DEEP)][1]):
        layers[f"layer{index + 1}"], in_channels = _stage(
            name, in_channels, 64 * 2**index, blocks, 1 if index == 0 else 2
        )
    network = nn.Sequential(layers)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
