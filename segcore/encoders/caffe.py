"""VGG and CaffeNet with fc6 and fc7 as convolutions, as Caffe's segmentation networks start.

Reference: Long, Shelhamer & Darrell 2015, arXiv:1411.4038.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from segcore.encoders.first_conv import adapt_first_conv
from segcore.encoders.vgg import trunk
from segcore.encoders.weights import load_trunk, torchvision_weights

# Zeros around the image, so that fc6 fits even into a small one.
PADDING = 100


class CaffeTrunk(nn.Module):
    """Trunk padded by 100 px, then fc6 and fc7 as convolutions.

    Shape:
        x: [N, in_channels, H, W]
        returns: features of strides 8 and 16 for VGG (none for CaffeNet), and fc7's [N, 4096, h, w]
    """

    def __init__(self, layers: nn.Sequential, *, taps: Sequence[int], fc6_size: int) -> None:
        super().__init__()
        self.layers = layers
        self.taps = tuple(taps)
        channels = [m.out_channels for m in layers if isinstance(m, nn.Conv2d)][-1]
        self.fc = nn.Sequential(
            nn.Conv2d(channels, 4096, fc6_size),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Conv2d(4096, 4096, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
        )
        for layer in self.fc:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.taps:
                features.append(x)
        return [*features, self.fc(x)]


def vgg_trunk(name: str, in_channels: int, *, pretrained: bool) -> CaffeTrunk:
    """VGG with padding 100, pooling that rounds up, fc layers as convolutions."""
    layers = trunk(name)
    pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    for layer in layers:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    network = CaffeTrunk(layers, taps=pools[2:4], fc6_size=7)
    if pretrained:
        state = torchvision_weights(name)
        load_trunk(layers, state, f"torchvision's {name}")
        # A linear layer over [C, 7, 7] is a 7x7 convolution whose kernels are its reshaped rows.
        own = network.fc.state_dict()
        renamed = {key: state[f"classifier.{key}"].view_as(value) for key, value in own.items()}
        network.fc.load_state_dict(renamed)
    adapt_first_conv(layers, in_channels, keep_weights=pretrained)
    first = layers[0]
    if isinstance(first, nn.Conv2d):
        first.padding = (PADDING, PADDING)
    return network


def caffenet_trunk(in_channels: int) -> CaffeTrunk:
    """The AlexNet of Caffe: two groups, local response normalisation after pooling."""
    relu = nn.ReLU(inplace=True)
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    layers = nn.Sequential(
        *(nn.Conv2d(in_channels, 96, 11, 4, padding=PADDING), relu, pool, nn.LocalResponseNorm(5)),
        *(nn.Conv2d(96, 256, 5, padding=2, groups=2), relu, pool, nn.LocalResponseNorm(5)),
        *(nn.Conv2d(256, 384, 3, padding=1), relu),
        *(nn.Conv2d(384, 384, 3, padding=1, groups=2), relu),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=2), relu, pool),
    )
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return CaffeTrunk(layers, taps=(), fc6_size=6)
