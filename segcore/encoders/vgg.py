"""VGG trunks, with torchvision's parameter names.

Written out here because importing torchvision costs seconds, and half the published segmentation
systems start from VGG.

Reference: Simonyan & Zisserman 2015, arXiv:1409.1556.
"""

from torch import nn

# Convolutions before each of the five poolings.
LAYOUTS: dict[str, tuple[int, int, int, int, int]] = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
WIDTHS = (64, 128, 256, 512, 512)


def trunk(name: str) -> nn.Sequential:
    """The convolutions and poolings of "vgg11" to "vgg19", or "vgg11_bn" to "vgg19_bn".

    Convolutions are He-normal over fan_out with zero biases.
    """
    layout = LAYOUTS[name.removesuffix("_bn")]
    layers: list[nn.Module] = []
    channels = 3
    for convolutions, width in zip(layout, WIDTHS, strict=True):
        for _ in range(convolutions):
            conv = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            layers.append(conv)
            if name.endswith("_bn"):
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU(inplace=True))
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)
