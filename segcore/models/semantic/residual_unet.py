"""Residual U-Net: short skips inside pre-activation blocks, long skips by sum.

Reference: Drozdzal et al. 2016, The Importance of Skip Connections in Biomedical Image
Segmentation, arXiv:1608.04117 (Table 1).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from segcore.errors import OptionError
from segcore.models.blocks import check_choice, check_images, crop_to, init_he, pad_to_multiple
from segcore.models.card import ModelCard
from segcore.models.upsampling import UPSAMPLINGS, create_upsample

CARDS = {
    "residual_unet": ModelCard(
        name="residual_unet",
        title="Residual U-Net",
        paper="Drozdzal, Vorontsov, Chartrand, Kadoury & Pal 2016, The Importance of Skip "
        "Connections in Biomedical Image Segmentation, arXiv:1608.04117",
        year=2016,
        task="semantic",
        parameters=11_452_981,
        published={"isbi_em_rand": 0.969, "isbi_em_info": 0.986},
        notes="The paper gives no count; this layout has 11,451,745 parameters at 1 channel and 1 "
        "class, which is the count of Table 1 with biases and 1x1 convolutions on long skips.",
    )
}
STEM = 32
# (width, repetitions) of the bottleneck stages on the way down; mirrored on the way up.
STAGES = ((128, 3), (256, 8), (512, 10))
ACROSS = (1024, 3)
STRIDE = 32


class NormActConv(nn.Sequential):
    """Batch norm, ReLU, dropout, convolution.

    Shape:
        x: [N, in_channels, H, W]
        returns: [N, out_channels, H / stride, W / stride]
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int, dropout: float
    ) -> None:
        super().__init__(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2),
        )


class ResidualBlock(nn.Module):
    """A short skip around one 3x3 convolution (simple) or around 1x1, 3x3, 1x1 (bottleneck).

    Shape:
        x: [N, in_channels, H, W]
        returns: [N, out_channels, H / stride, W / stride]
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck: bool,
        stride: int = 1,
        dropout: float,
    ) -> None:
        super().__init__()
        if bottleneck:
            hidden = out_channels // 4
            shapes = [(in_channels, hidden, 1), (hidden, hidden, 3), (hidden, out_channels, 1)]
        else:
            shapes = [(in_channels, out_channels, 3)]
        self.body = nn.Sequential(
            *(
                NormActConv(i, o, k, stride=stride if index == 0 else 1, dropout=dropout)
                for index, (i, o, k) in enumerate(shapes)
            )
        )
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or stride != 1:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x.clone()) + self.shortcut(x)
        return out


def stage(
    in_channels: int, width: int, repetitions: int, *, stride: int, dropout: float
) -> nn.Sequential:
    """Repeated bottlenecks; the first one may halve the size."""
    return nn.Sequential(
        *(
            ResidualBlock(
                in_channels if index == 0 else width,
                width,
                bottleneck=True,
                stride=stride if index == 0 else 1,
                dropout=dropout,
            )
            for index in range(repetitions)
        )
    )


class ResidualUNet(nn.Module):
    """Five halvings down, five doublings up; encoder maps are added (Fig. 1, Table 1).

    Shape:
        x: [N, in_channels, H, W], H and W at least 32
        returns: {"out": [N, num_classes, H, W]}
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        dropout: float = 0.2,
        upsample: str = "nearest",
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.stem = nn.Conv2d(in_channels, STEM, 3, padding=1)
        self.down_simple = ResidualBlock(STEM, STEM, bottleneck=False, dropout=dropout)
        self.down = nn.ModuleList()
        channels = STEM
        for width, repetitions in STAGES:
            self.down.append(stage(channels, width, repetitions, stride=2, dropout=dropout))
            channels = width
        self.across = stage(channels, *ACROSS, stride=2, dropout=dropout)
        channels = ACROSS[0]
        widths = (ACROSS[0], *(width for width, _ in reversed(STAGES)), STEM)
        self.enlarge = nn.ModuleList(
            create_upsample(upsample, width, width, kernel_size=None) for width in widths
        )
        self.skip_projections, self.up = nn.ModuleList(), nn.ModuleList()
        for width, repetitions in reversed(STAGES):
            self.skip_projections.append(nn.Conv2d(channels, width, 1))
            self.up.append(stage(width, width, repetitions, stride=1, dropout=dropout))
            channels = width
        self.skip_projections.append(nn.Conv2d(channels, STEM, 1))
        self.up.append(ResidualBlock(STEM, STEM, bottleneck=False, dropout=dropout))
        self.head = nn.Sequential(
            nn.Conv2d(STEM, STEM, 3, padding=1),
            nn.BatchNorm2d(STEM),
            nn.ReLU(inplace=True),
            nn.Conv2d(STEM, num_classes, 1),
        )
        init_he(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = check_images(x, self.in_channels)
        x = self.stem(pad_to_multiple(x, STRIDE, minimum=2 * STRIDE))
        full = x
        x = self.down_simple(F.max_pool2d(x, 2))
        skips = [x]
        for down in self.down:
            x = down(x)
            skips.append(x)
        x = self.across(x)
        *enlarge, last = self.enlarge
        for larger, project, up in zip(enlarge, self.skip_projections, self.up, strict=True):
            x = up(project(larger(x)) + skips.pop())
        return {"out": crop_to(self.head(last(x) + full), size)}


def residual_unet(
    *,
    num_classes: int,
    in_channels: int = 3,
    dropout: float = 0.2,
    upsample: str = "nearest",
) -> ResidualUNet:
    """Residual U-Net.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the images.
        dropout: of whole maps, before each convolution of a block.
        upsample: a name of `segcore.models.upsampling.UPSAMPLINGS`; kernels only where it has them.

    Raises:
        OptionError: dropout outside [0, 1), or unknown upsample.
    """
    check_choice("upsample", upsample, UPSAMPLINGS)
    if not 0 <= dropout < 1:
        raise OptionError(f"dropout is {dropout!r}: give a probability in [0, 1)")
    return ResidualUNet(in_channels, num_classes, dropout=dropout, upsample=upsample)
