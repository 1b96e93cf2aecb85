"""SegNet and SegNet-Basic: decoders that mirror the encoder and unpool with its indices.

Reference: Badrinarayanan, Kendall & Cipolla 2017, arXiv:1511.00561; SegNet-Tutorial's prototxt.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from segcore.encoders.first_conv import adapt_first_conv
from segcore.encoders.vgg import trunk
from segcore.encoders.weights import load_trunk, torchvision_weights
from segcore.errors import OptionError
from segcore.models.blocks import ConvNormAct, check_images, init_he
from segcore.models.card import ModelCard
from segcore.models.upsampling import max_unpool

PAPER = (
    "Badrinarayanan, Kendall & Cipolla 2017, SegNet: A Deep Convolutional Encoder-Decoder "
    "Architecture for Image Segmentation, arXiv:1511.00561"
)
CARDS = {
    "segnet": ModelCard(
        name="segnet",
        title="SegNet",
        paper=PAPER,
        year=2017,
        task="semantic",
        parameters=29_455_125,
        counts={11: 29_449_355, 12: 29_449_932, 19: 29_453_971, 37: 29_464_357},
        published={
            "camvid_miou": 60.1,
            "camvid_pixel_accuracy": 90.4,
            "camvid_class_accuracy": 71.2,
            "sunrgbd_miou": 31.84,
        },
        notes="CamVid figures: 3.5K training images, pretrained encoder. 367 images: 46.4 to 55.6.",
    ),
    "segnet_basic": ModelCard(
        name="segnet_basic",
        title="SegNet-Basic",
        paper=PAPER,
        year=2017,
        task="semantic",
        parameters=1_417_237,
        counts={11: 1_416_587},
        published={"camvid_miou": 47.7, "camvid_pixel_accuracy": 82.7},
        notes="Biases as in the released prototxt; the paper says none and 1.425M, which no "
        "count of its layers gives.",
    ),
}
# Output channels of each decoder's convolutions; the last one is the classifier.
DECODERS = ((512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64,))
BN_SHIFT = 0.001


def init_released(module: nn.Module) -> None:
    """He-normal convolutions; batch norm of scale 1 and shift 0.001, as the release."""
    init_he(module)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.constant_(layer.bias, BN_SHIFT)


class SegNet(nn.Module):
    """VGG16 encoder with batch norm, and its mirror.

    Pooling rounds up, as Caffe does, so any size goes through and comes back.

    Shape:
        x: [N, in_channels, H, W], H and W at least 32
        returns: {"out": [N, num_classes, H, W]}
    """

    def __init__(self, in_channels: int, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.encoder = trunk("vgg16_bn")
        adapt_first_conv(self.encoder, in_channels, keep_weights=False)
        for layer in self.encoder:
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode, layer.return_indices = True, True
        self.decoders = nn.ModuleList()
        channels = 512
        for widths in DECODERS:
            decoder = nn.Sequential()
            for width in widths:
                decoder.append(ConvNormAct(channels, width))
                channels = width
            self.decoders.append(decoder)
        self.classifier = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        init_released(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        check_images(x, self.in_channels)
        places: list[tuple[Tensor, tuple[int, int]]] = []
        for layer in self.encoder:
            if isinstance(layer, nn.MaxPool2d):
                size = (x.shape[2], x.shape[3])
                x, indices = layer(x)
                places.append((indices, size))
                # Bayesian SegNet drops out around its deepest three levels.
                x = self.dropout(x) if len(places) >= 3 else x
            else:
                x = layer(x)
        for level, decoder in enumerate(self.decoders):
            x = decoder(max_unpool(x, *places.pop()))
            x = self.dropout(x) if level < 3 else x
        return {"out": self.classifier(x)}


class SegNetBasic(nn.Module):
    """Four 7x7 encoders, four 7x7 decoders without ReLU, 64 channels throughout.

    Shape:
        x: [N, in_channels, H, W], H and W at least 32
        returns: {"out": [N, num_classes, H, W]}
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.normalise = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        self.encoders = nn.ModuleList(
            ConvNormAct(channels, 64, kernel_size=7) for channels in (in_channels, 64, 64, 64)
        )
        self.decoders = nn.ModuleList(
            nn.Sequential(nn.Conv2d(64, 64, 7, padding=3), nn.BatchNorm2d(64)) for _ in range(4)
        )
        self.classifier = nn.Conv2d(64, num_classes, 1)
        init_released(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        check_images(x, self.in_channels)
        x = self.normalise(x)
        places: list[tuple[Tensor, tuple[int, int]]] = []
        for encoder in self.encoders:
            x = encoder(x)
            size = (x.shape[2], x.shape[3])
            x, indices = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
            places.append((indices, size))
        for decoder in self.decoders:
            x = decoder(max_unpool(x, *places.pop()))
        return {"out": self.classifier(x)}


def segnet(
    *,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    dropout: float = 0.0,
) -> SegNet:
    """SegNet.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the images.
        pretrained: ImageNet weights of vgg16_bn in the encoder.
        dropout: 0.5 makes it Bayesian SegNet (arXiv:1511.02680).

    Raises:
        OptionError: dropout is not a probability.
    """
    if not 0 <= dropout < 1:
        raise OptionError(f"dropout is {dropout!r}: give a probability in [0, 1)")
    model = SegNet(in_channels if not pretrained else 3, num_classes, dropout=dropout)
    if pretrained:
        load_trunk(model.encoder, torchvision_weights("vgg16_bn"), "torchvision's vgg16_bn")
        adapt_first_conv(model.encoder, in_channels, keep_weights=True)
        model.in_channels = in_channels
    return model


def segnet_basic(*, num_classes: int, in_channels: int = 3) -> SegNetBasic:
    """SegNet-Basic, the small network of the paper's controlled comparisons.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the images.
    """
    return SegNetBasic(in_channels, num_classes)
