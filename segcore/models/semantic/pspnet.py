"""PSPNet: pyramid pooling over a dilated ResNet.

Reference: Zhao, Shi, Qi, Wang & Jia 2017, arXiv:1612.01105; hszhao/semseg.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.encoders import create_encoder
from segcore.errors import OptionError
from segcore.models.blocks import ConvNormAct, check_images, resize
from segcore.models.card import ModelCard

CARDS = {
    "pspnet": ModelCard(
        name="pspnet",
        title="PSPNet-50",
        paper="Zhao, Shi, Qi, Wang & Jia 2017, Pyramid Scene Parsing Network, arXiv:1612.01105",
        year=2017,
        task="semantic",
        parameters=49_081_578,
        counts={11: 49_073_878, 150: 49_180_908},
        published={"voc2012_test_miou": 82.6, "cityscapes_test_miou": 80.2, "ade20k_miou": 41.68},
        notes="The VOC and Cityscapes figures are PSPNet-101 (backbone='resnet101_deep'). The "
        "count includes the auxiliary head, which only training uses; without it 46,716,373.",
    )
}
BINS = (1, 2, 3, 6)
OUTPUT_STRIDE = 8
DROPOUT = 0.1


class SingleValueBatchNorm(nn.BatchNorm2d):
    """Batch norm that falls back to its running averages where a batch has one value a channel.

    The 1x1 bin of one image has no variance; every other batch is normalised as usual.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


class PyramidPooling(nn.Module):
    """Average pooling to bins of 1, 2, 3 and 6 squared over the whole map (Fig. 3c).

    Shape:
        x: [N, in_channels, H, W]
        returns: [N, 2 * in_channels, H, W]: x, then the enlarged bins
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        hidden = in_channels // len(BINS)
        self.bins = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(size),
                nn.Conv2d(in_channels, hidden, 1, bias=False),
                SingleValueBatchNorm(hidden),
                nn.ReLU(inplace=True),
            )
            for size in BINS
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = (resize(part(x), x.shape[2:], align_corners=True) for part in self.bins)
        return torch.cat([x, *pooled], dim=1)


def classifier(in_channels: int, hidden: int, num_classes: int) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU, dropout, 1x1 convolution."""
    return nn.Sequential(
        ConvNormAct(in_channels, hidden, bias=False),
        nn.Dropout2d(DROPOUT),
        nn.Conv2d(hidden, num_classes, 1),
    )


class PSPNet(nn.Module):
    """Encoder of output stride 8, pyramid pooling, classifier, bilinear x8.

    Shape:
        x: [N, in_channels, H, W], H and W at least 32
        returns: {"out": [N, num_classes, H, W]}; "aux" of the same shape in training
    """

    def __init__(
        self, encoder: nn.Module, in_channels: int, num_classes: int, *, aux: bool
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.encoder = encoder
        # res4, which the auxiliary loss reads, shares stride 8 with res5: run the stages by hand.
        self.split = [name for name, _ in encoder.trunk.named_children()].index("layer4")  # type: ignore[union-attr]
        deep, middle = 2048, 1024
        self.pyramid = PyramidPooling(deep)
        self.head = classifier(2 * deep, deep // 4, num_classes)
        self.aux_head = classifier(middle, middle // 4, num_classes) if aux else None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        height, width = check_images(x, self.in_channels)
        # Sides of 8 k + 1 put the corners of the coarse map on the corners of the image.
        x = F.pad(x, (0, -(width - 1) % OUTPUT_STRIDE, 0, -(height - 1) % OUTPUT_STRIDE))
        size = x.shape[2:]
        middle = self.encoder.trunk[: self.split](x)  # type: ignore[index, operator]
        deep = self.encoder.trunk[self.split :](middle)  # type: ignore[index, operator]
        maps = {"out": self.head(self.pyramid(deep))}
        if self.training and self.aux_head is not None:
            maps["aux"] = self.aux_head(middle)
        return {
            name: resize(logits, size, align_corners=True)[:, :, :height, :width]
            for name, logits in maps.items()
        }


def pspnet(
    *,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    backbone: str = "resnet50_deep",
    aux: bool = True,
) -> PSPNet:
    """PSPNet; the default is PSPNet-50 with the authors' stem of three 3x3 convolutions.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the images.
        pretrained: ImageNet weights in the backbone; torchvision has them for the plain stem.
        backbone: resnet50, resnet101, resnet152, each with "_deep" where the encoder has it.
        aux: build the auxiliary head on res4, whose loss the task weighs by 0.4.

    Raises:
        OptionError: the backbone is not a ResNet of bottlenecks.
    """
    if not backbone.startswith(("resnet50", "resnet101", "resnet152", "resnext", "wide_resnet")):
        raise OptionError(
            f"backbone {backbone!r} is no bottleneck ResNet: take resnet50_deep, resnet101_deep, "
            "resnet50, resnet101, resnet152, a resnext or a wide_resnet"
        )
    encoder = create_encoder(
        backbone, in_channels=in_channels, output_stride=OUTPUT_STRIDE, pretrained=pretrained
    )
    return PSPNet(encoder, in_channels, num_classes, aux=aux)
