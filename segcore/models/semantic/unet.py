"""U-Net: contracting and expanding paths joined by concatenation.

Reference: Ronneberger, Fischer & Brox 2015, arXiv:1505.04597.
"""

import math

import torch
from torch import Tensor, nn

from segcore.encoders import Encoder, create_encoder
from segcore.errors import OptionError, ShapeError
from segcore.models.blocks import (
    check_choice,
    check_images,
    crop_to,
    init_he,
    make_norm,
    pad_to_multiple,
    resize,
)
from segcore.models.card import ModelCard
from segcore.models.upsampling import UPSAMPLINGS, create_upsample

CARDS = {
    "unet": ModelCard(
        name="unet",
        title="U-Net",
        paper="Ronneberger, Fischer & Brox 2015, U-Net: Convolutional Networks for Biomedical "
        "Image Segmentation, arXiv:1505.04597",
        year=2015,
        task="semantic",
        parameters=31_033_045,
        counts={2: 31_031_810, 11: 31_032_395, 12: 31_032_460},
        published={"isbi_em_warping_error": 0.0003529, "isbi_em_rand_error": 0.0382},
        notes="padding='same' keeps the input size and the paper's weights; padding='valid' is "
        "the paper's 572 to 388, whose output is smaller than its input.",
    )
}
HEAD_KERNELS = (1, 3)
RESIZING = ("nearest", "bilinear")
LEVELS = 4
PADDINGS = ("same", "valid", "reflect")


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each with optional normalisation and ReLU.

    Shape:
        x: [N, in_channels, H, W]
        returns: [N, out_channels, H, W]; 4 less on each side for padding="valid"
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, padding: str, norm: str | None
    ) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers.append(
                nn.Conv2d(
                    channels,
                    out_channels,
                    3,
                    padding=0 if padding == "valid" else 1,
                    padding_mode="reflect" if padding == "reflect" else "zeros",
                )
            )
            if norm is not None:
                layers.append(make_norm(norm, out_channels))
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class UNet(nn.Module):
    """Four levels down, four up; 23 convolutions (Fig. 1).

    Shape:
        x: [N, in_channels, H, W], H and W at least 32; 188 + 16 k for padding="valid"
        returns: {"out": [N, num_classes, H, W]}; 184 less on each side for padding="valid"
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        base_channels: int = 64,
        padding: str = "same",
        norm: str | None = None,
        dropout: float = 0.5,
        upsample: str = "transposed",
        head_kernel: int = 1,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.padding = padding
        widths = [base_channels * 2**level for level in range(LEVELS + 1)]
        self.down = nn.ModuleList(
            DoubleConv(before, after, padding=padding, norm=norm)
            for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.ModuleList(
            create_upsample(upsample, 2 * width, width, kernel_size=2) for width in widths[:-1]
        )
        self.merge = nn.ModuleList(
            DoubleConv(2 * width, width, padding=padding, norm=norm) for width in widths[:-1]
        )
        self.classifier = create_head(base_channels, num_classes, head_kernel)
        init_he(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.padding == "valid":
            self._check_valid(check_images(x, self.in_channels))
            return {"out": self.logits(x)}
        size = check_images(x, self.in_channels)
        return {"out": crop_to(self.logits(pad_to_multiple(x, 2**LEVELS)), size)}

    def logits(self, x: Tensor) -> Tensor:
        """Logits of an image whose sides fit all four poolings."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(self.pool(x) if level else x)
            # The end of the contracting path: its last two levels, as the released network.
            x = self.dropout(x) if level >= LEVELS - 1 else x
            skips.append(x)
        x = skips.pop()
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            x = up(x)
            x = merge(torch.cat([center_crop(skips.pop(), x), x], dim=1))
        logits: Tensor = self.classifier(x)
        return logits

    def _check_valid(self, size: tuple[int, ...]) -> None:
        for side in size:
            if side < 188 or (side - 188) % 16:
                near = 188 + 16 * max(0, math.ceil((side - 188) / 16))
                raise ShapeError(
                    f"images of size {size} do not fit padding='valid': sides are 188 + 16 k; "
                    f"mirror {side} up to {near}"
                )


def center_crop(skip: Tensor, x: Tensor) -> Tensor:
    """Cut the border pixels of `skip` that valid convolutions lost in `x`."""
    top = (skip.shape[2] - x.shape[2]) // 2
    left = (skip.shape[3] - x.shape[3]) // 2
    return skip[:, :, top : top + x.shape[2], left : left + x.shape[3]]


def create_head(in_channels: int, num_classes: int, kernel: int) -> nn.Conv2d:
    """The convolution that gives the logits; keeps the size."""
    return nn.Conv2d(in_channels, num_classes, kernel, padding=kernel // 2)


def init_classifier(layer: nn.Conv2d) -> None:
    """Small logits at the start: no class is believed in before anything is learned."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class BackboneUNet(nn.Module):
    """U-Net's expanding path over the features of a classification backbone.

    A level of stride s has base_channels * s / 4 channels, which keeps the decoder as light as
    its encoder. Resizing rules ("nearest", "bilinear") hand all channels on to the level's two
    convolutions: one that only narrows them, without a norm, makes learning from random weights
    several times slower. Learned kinds narrow them as the paper's up-convolution does.

    Shape:
        x: [N, in_channels, H, W], H and W at least 32
        returns: {"out": [N, num_classes, H, W]}
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        *,
        base_channels: int = 64,
        padding: str = "same",
        norm: str | None = None,
        dropout: float = 0.5,
        upsample: str = "transposed",
        head_kernel: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        skips = list(zip(encoder.strides, encoder.out_channels, strict=True))[:-1]
        first = encoder.strides[0]
        strides = [2**i for i in range(int(math.log2(first)))]
        levels = [*((stride, 0) for stride in strides), *skips]
        channels = encoder.out_channels[-1]
        self.up, self.merge = nn.ModuleList(), nn.ModuleList()
        for stride, skip in reversed(levels):
            width = max(base_channels * stride // 4, 1)
            if upsample in RESIZING:
                self.up.append(create_upsample(upsample, channels, channels, kernel_size=None))
            else:
                self.up.append(create_upsample(upsample, channels, width, kernel_size=2))
                channels = width
            self.merge.append(DoubleConv(channels + skip, width, padding=padding, norm=norm))
            channels = width
        self.classifier = create_head(channels, num_classes, head_kernel)
        for module in (self.up, self.merge):
            init_he(module)
        init_classifier(self.classifier)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = check_images(x, self.encoder.in_channels)
        x = pad_to_multiple(x, 32, minimum=64)
        padded = x.shape[2:]
        *skips, x = self.encoder(x)
        x = self.dropout(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = up(x)
            if skips:
                skip = skips.pop()
                x = torch.cat([skip, resize(x, skip.shape[2:])], dim=1)
            x = merge(x)
        return {"out": crop_to(resize(self.classifier(x), padded), size)}


def unet(
    *,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    base_channels: int = 64,
    padding: str = "same",
    norm: str | None = None,
    dropout: float = 0.5,
    upsample: str = "transposed",
    head_kernel: int = 1,
    backbone: str | None = None,
) -> nn.Module:
    """U-Net; the defaults are the paper's network, padded to keep the size.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the images.
        pretrained: ImageNet weights in the backbone.
        base_channels: width of the first level.
        padding: "same" (zeros), "reflect", or "valid" as in the paper.
        norm: None as in the paper, "batch", "group" or "instance".
        dropout: at the end of the contracting path.
        upsample: a name of `segcore.models.upsampling.UPSAMPLINGS`.
        head_kernel: of the convolution that gives the logits: 1 as in the paper, or 3. Adam moves
            each weight as far, so that logits of nine times the weights grow nine times as fast:
            what learns in minutes wants 3.
        backbone: an encoder name in place of the paper's contracting path.

    Raises:
        OptionError: a value that an option does not have.
    """
    check_choice("upsample", upsample, UPSAMPLINGS)
    check_choice("padding", padding, PADDINGS)
    check_choice("head_kernel", head_kernel, HEAD_KERNELS)
    if not 0 <= dropout < 1:
        raise OptionError(f"dropout is {dropout!r}: give a probability in [0, 1)")
    if base_channels < 1:
        raise OptionError(f"base_channels is {base_channels!r}: give at least 1")
    if backbone is None:
        if pretrained:
            raise OptionError("unet has weights only in a backbone: set backbone=, e.g. 'resnet34'")
        return UNet(
            in_channels,
            num_classes,
            base_channels=base_channels,
            padding=padding,
            norm=norm,
            dropout=dropout,
            upsample=upsample,
            head_kernel=head_kernel,
        )
    if padding == "valid":
        raise OptionError("padding='valid' needs the paper's encoder: leave backbone out")
    return BackboneUNet(
        create_encoder(backbone, in_channels=in_channels, pretrained=pretrained),
        num_classes,
        base_channels=base_channels,
        padding=padding,
        norm=norm,
        dropout=dropout,
        upsample=upsample,
        head_kernel=head_kernel,
    )
