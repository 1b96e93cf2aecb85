"""LinkNet: a light decoder that adds encoder features back by sum.

Reference: Chaurasia & Culurciello 2017, arXiv:1707.03718; e-lab/LinkNet models/model.lua.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from segcore.encoders import Encoder, create_encoder
from segcore.errors import OptionError
from segcore.models.blocks import (
    ConvNormAct,
    check_choice,
    check_images,
    crop_to,
    init_he,
    pad_to_multiple,
)
from segcore.models.card import ModelCard
from segcore.models.upsampling import UPSAMPLINGS, UpsampleNormAct

CARDS = {
    "linknet": ModelCard(
        name="linknet",
        title="LinkNet",
        paper="Chaurasia & Culurciello 2017, LinkNet: Exploiting Encoder Representations for "
        "Efficient Semantic Segmentation, arXiv:1707.03718",
        year=2017,
        task="semantic",
        parameters=11_536_949,
        counts={11: 11_535_659, 12: 11_535_788, 19: 11_536_691},
        published={"camvid_miou": 68.3, "cityscapes_miou": 76.4},
        notes="Decoder convolutions keep their biases, as the released model.lua.",
    )
}
EPS = 1e-3


class LinkNetDecoderBlock(nn.Sequential):
    """Squeeze channels by 4, full convolution, expand (Fig. 3).

    Shape:
        x: [N, in_channels, H, W]
        returns: [N, out_channels, stride * H, stride * W]
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 2, upsample: str = "transposed"
    ) -> None:
        hidden = in_channels // 4
        super().__init__(
            ConvNormAct(in_channels, hidden, kernel_size=1, eps=EPS),
            UpsampleNormAct(upsample, hidden, hidden, scale=stride, eps=EPS),
            ConvNormAct(hidden, out_channels, kernel_size=1, eps=EPS),
        )


class LinkNet(nn.Module):
    """Encoder of strides 2 to 32; the input of each encoder stage is added to its decoder's output.

    Shape:
        x: [N, in_channels, H, W], H and W at least 32
        returns: {"out": [N, num_classes, H, W]}
    """

    def __init__(self, encoder: Encoder, num_classes: int, *, upsample: str = "transposed") -> None:
        super().__init__()
        self.encoder = encoder
        stem, *deep = encoder.out_channels
        links = [stem, *deep[:-1]]
        self.decoders = nn.ModuleList(
            LinkNetDecoderBlock(channels, link, stride=1 if level == 0 else 2, upsample=upsample)
            for level, (channels, link) in enumerate(zip(deep, links, strict=True))
        )
        self.head = nn.Sequential(
            UpsampleNormAct(upsample, stem, 32),
            ConvNormAct(32, 32, eps=EPS),
            nn.ConvTranspose2d(32, num_classes, 2, stride=2),
        )
        init_he(self.decoders, mode="fan_out")
        init_he(self.head, mode="fan_out")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = check_images(x, self.encoder.in_channels)
        features = self.encoder(pad_to_multiple(x, 32, minimum=64))
        return {"out": crop_to(self.decode(features), size)}

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Logits at the input size from features of strides 2, 4, 8, 16, 32."""
        pooled = F.max_pool2d(features[0], 3, stride=2, padding=1)
        links = [pooled, *features[1:-1]]
        x = features[-1]
        for decoder, link in zip(reversed(self.decoders), reversed(links), strict=True):
            x = F.relu(decoder(x) + link)
        logits: Tensor = self.head(x)
        return logits


def linknet(
    *,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    backbone: str = "resnet18",
    upsample: str = "transposed",
) -> LinkNet:
    """LinkNet; the paper's encoder is resnet18.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the images.
        pretrained: ImageNet weights in the encoder.
        backbone: any encoder with features of strides 2, 4, 8, 16 and 32.
        upsample: a name of `segcore.models.upsampling.UPSAMPLINGS`.

    Raises:
        OptionError: the backbone has other strides, or an option an unknown value.
    """
    check_choice("upsample", upsample, UPSAMPLINGS)
    encoder = create_encoder(backbone, in_channels=in_channels, pretrained=pretrained)
    if encoder.strides != [2, 4, 8, 16, 32]:
        raise OptionError(
            f"backbone {backbone!r} has strides {encoder.strides}, linknet needs "
            "[2, 4, 8, 16, 32]: take a resnet, densenet, mobilenet or efficientnet"
        )
    return LinkNet(encoder, num_classes, upsample=upsample)
