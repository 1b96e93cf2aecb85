"""DeepLab-LargeFOV: VGG16 with holes, a 3x3 fc6 that looks 12 apart, bilinear x8.

Its dense CRF is `segcore.inference.crf.DenseCRF`, applied to the probabilities.

Reference: Chen et al. 2015, arXiv:1412.7062.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from segcore.encoders.vgg import LAYOUTS, WIDTHS
from segcore.encoders.weights import load_trunk, torchvision_weights
from segcore.errors import OptionError
from segcore.models.blocks import check_images, resize
from segcore.models.card import ModelCard

CARDS = {
    "deeplab_largefov": ModelCard(
        name="deeplab_largefov",
        title="DeepLab-LargeFOV",
        paper="Chen, Papandreou, Kokkinos, Murphy & Yuille 2015, Semantic Image Segmentation with "
        "Deep Convolutional Nets and Fully Connected CRFs, arXiv:1412.7062",
        year=2015,
        task="semantic",
        parameters=20_505_429,
        counts={11: 20_495_179, 19: 20_503_379},
        published={"voc2012_test_miou": 70.3, "camvid_miou": 61.6},
        notes="voc2012_test_miou is with dense CRF. The paper trains on labels sub-sampled by 8; "
        "here the loss sees logits enlarged to the input size, as every other model's.",
    )
}
OUTPUT_STRIDE = 8
FC_CHANNELS = 1024


def holed_vgg16(in_channels: int) -> nn.Sequential:
    """VGG16 whose last two poolings keep the size and whose conv5 is dilated by 2.

    The indices of convolutions are those of torchvision's vgg16.features, so its weights load.
    """
    layers: list[nn.Module] = []
    channels = in_channels
    for stage, (convolutions, width) in enumerate(zip(LAYOUTS["vgg16"], WIDTHS, strict=True)):
        dilation = 2 if stage == 4 else 1
        for _ in range(convolutions):
            layers.append(nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation))
            layers.append(nn.ReLU(inplace=True))
            channels = width
        layers.append(nn.MaxPool2d(3, stride=2 if stage < 3 else 1, padding=1))
    return nn.Sequential(*layers)


class DeepLabLargeFOV(nn.Module):
    """Output stride 8; fc6 is a 3x3 convolution with dilation 12 (section 3.1).

    Shape:
        x: [N, in_channels, H, W], H and W at least 32
        returns: {"out": [N, num_classes, H, W]}
    """

    def __init__(
        self, in_channels: int, num_classes: int, *, rate: int = 12, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.trunk = holed_vgg16(in_channels)
        self.head = nn.Sequential(
            OrderedDict(
                fc6=nn.Conv2d(WIDTHS[-1], FC_CHANNELS, 3, padding=rate, dilation=rate),
                relu6=nn.ReLU(inplace=True),
                drop6=nn.Dropout(dropout),
                fc7=nn.Conv2d(FC_CHANNELS, FC_CHANNELS, 1),
                relu7=nn.ReLU(inplace=True),
                drop7=nn.Dropout(dropout),
                fc8=nn.Conv2d(FC_CHANNELS, num_classes, 1),
            )
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.head.get_parameter("fc8.weight"), std=0.01)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        height, width = check_images(x, self.in_channels)
        # Sides of 8 k + 1 put the corners of the coarse map on the corners of the image.
        x = F.pad(x, (0, -(width - 1) % OUTPUT_STRIDE, 0, -(height - 1) % OUTPUT_STRIDE))
        logits = resize(self.head(self.trunk(x)), x.shape[2:], align_corners=True)
        return {"out": logits[:, :, :height, :width]}


def deeplab_largefov(
    *,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    rate: int = 12,
    dropout: float = 0.5,
) -> DeepLabLargeFOV:
    """DeepLab-LargeFOV.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the images; pretrained weights need 3.
        pretrained: ImageNet weights in VGG16's convolutions.
        rate: dilation of fc6.
        dropout: after fc6 and fc7.

    Raises:
        OptionError: rate below 1, or pretrained with other than 3 channels.
    """
    if rate < 1:
        raise OptionError(f"rate is {rate!r}: give a dilation of at least 1")
    if pretrained and in_channels != 3:
        raise OptionError(f"pretrained VGG16 takes 3 channels, not {in_channels}")
    model = DeepLabLargeFOV(in_channels, num_classes, rate=rate, dropout=dropout)
    if pretrained:
        load_trunk(model.trunk, torchvision_weights("vgg16"), "torchvision's vgg16")
    return model
