"""DeconvNet: VGG16 down to one vector a window, and its mirror by unpooling and deconvolution.

Reference: Noh, Hong & Han 2015, arXiv:1505.04366.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from segcore.encoders.vgg import LAYOUTS, WIDTHS
from segcore.models.blocks import check_images, crop_to, pad_to_multiple
from segcore.models.card import ModelCard
from segcore.models.upsampling import max_unpool

CARDS = {
    "deconvnet": ModelCard(
        name="deconvnet",
        title="DeconvNet",
        paper="Noh, Hong & Han 2015, Learning Deconvolution Network for Semantic Segmentation, "
        "arXiv:1505.04366",
        year=2015,
        task="semantic",
        parameters=251_805_653,
        published={"voc2012_test_miou": 69.6, "voc2012_test_miou_ensemble_crf": 72.5},
        notes="Built for windows of 224 x 224; smaller images are padded to that.",
    )
}
WINDOW = 224
FC_CHANNELS = 4096
# Output widths of each decoder stage, deepest first.
DECODER = ((512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64, 64))


class ConvNormReLU(nn.Sequential):
    """Convolution or full convolution, batch norm, ReLU."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True))


class DeconvNet(nn.Module):
    """Encoder, 1x1x4096 bottleneck, decoder that mirrors both (Fig. 2, Table 1).

    Shape:
        x: [N, in_channels, H, W], H and W at least 32
        returns: {"out": [N, num_classes, H, W]}
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.encoder = nn.ModuleList()
        channels = in_channels
        for convolutions, width in zip(LAYOUTS["vgg16"], WIDTHS, strict=True):
            stage = []
            for _ in range(convolutions):
                stage.append(ConvNormReLU(nn.Conv2d(channels, width, 3, padding=1)))
                channels = width
            self.encoder.append(nn.Sequential(*stage))
        self.bottleneck = nn.Sequential(
            ConvNormReLU(nn.Conv2d(channels, FC_CHANNELS, 7)),
            ConvNormReLU(nn.Conv2d(FC_CHANNELS, FC_CHANNELS, 1)),
            ConvNormReLU(nn.ConvTranspose2d(FC_CHANNELS, channels, 7)),
        )
        self.decoder = nn.ModuleList()
        for widths in DECODER:
            stage = []
            for width in widths:
                stage.append(ConvNormReLU(nn.ConvTranspose2d(channels, width, 3, padding=1)))
                channels = width
            self.decoder.append(nn.Sequential(*stage))
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.encoder.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        for part in (self.bottleneck, self.decoder, self.classifier):
            for module in part.modules():
                if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                    nn.init.normal_(module.weight, std=0.01)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.bias is not None:
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.bias, 0.001)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = check_images(x, self.in_channels)
        # The 7x7 fc6 sees one position at 224; two columns keep batch norm defined at batch 1.
        x = pad_to_multiple(x, 32, minimum=WINDOW)
        if self.training and x.shape[0] == 1 and x.shape[2] == x.shape[3] == WINDOW:
            x = F.pad(x, (0, 32))
        switches = []
        for stage in self.encoder:
            x, indices = F.max_pool2d(stage(x), 2, return_indices=True)
            switches.append(indices)
        x = self.bottleneck(x)
        for stage in self.decoder:
            x = stage(max_unpool(x, switches.pop(), (2 * x.shape[2], 2 * x.shape[3])))
        return {"out": crop_to(self.classifier(x), size)}


def deconvnet(*, num_classes: int, in_channels: int = 3) -> DeconvNet:
    """DeconvNet.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the images.
    """
    return DeconvNet(in_channels, num_classes)
