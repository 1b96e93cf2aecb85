"""ENet: a thin real-time network of bottlenecks, upsampled with its own pooling indices.

Reference: Paszke et al. 2016, arXiv:1606.02147; e-lab/ENet-training encoder.lua and decoder.lua.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.models.blocks import check_images, crop_to, pad_to_multiple
from segcore.models.card import ModelCard
from segcore.models.upsampling import max_unpool

CARDS = {
    "enet": ModelCard(
        name="enet",
        title="ENet",
        paper="Paszke, Chaurasia, Kim & Culurciello 2016, ENet: A Deep Neural Network "
        "Architecture for Real-Time Semantic Segmentation, arXiv:1606.02147",
        year=2016,
        task="semantic",
        parameters=364_441,
        counts={11: 363_791, 12: 363_856, 19: 364_311, 20: 364_376},
        published={"camvid_miou": 51.3, "camvid_class_accuracy": 68.3, "cityscapes_miou": 58.3},
        notes="The authors' Lua structure, without the encoder's classifier of the first training "
        "stage (129 parameters per class).",
    )
}
EPS = 1e-3
INITIAL = 16
# Stages 2 and 3: (kind, dilation) of each bottleneck after the downsampling one.
CONTEXT = (
    ("regular", 1),
    ("dilated", 2),
    ("asymmetric", 1),
    ("dilated", 4),
    ("regular", 1),
    ("dilated", 8),
    ("asymmetric", 1),
    ("dilated", 16),
)


class InitialBlock(nn.Module):
    """A strided convolution beside the pooled image, 16 channels together (Fig. 2a).

    Shape:
        x: [N, in_channels, H, W]
        returns: [N, 16, H / 2, W / 2]
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        # More than half of the channels stay learned: images of many channels are not pooled in.
        self.pool_image = in_channels <= INITIAL // 2
        learned = INITIAL - in_channels if self.pool_image else INITIAL
        self.conv = nn.Conv2d(in_channels, learned, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(INITIAL, eps=EPS)
        self.act = nn.PReLU(INITIAL)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.pool_image:
            y = torch.cat([y, F.max_pool2d(x, 2)], dim=1)
        out: Tensor = self.act(self.norm(y))
        return out


def _main_conv(channels: int, kind: str, dilation: int) -> nn.Module:
    if kind == "asymmetric":
        return nn.Sequential(
            nn.Conv2d(channels, channels, (1, 5), padding=(0, 2), bias=False),
            nn.Conv2d(channels, channels, (5, 1), padding=(2, 0)),
        )
    return nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)


class Bottleneck(nn.Module):
    """1x1, main, 1x1 convolutions and spatial dropout, added to the input (Fig. 2b).

    Shape:
        x: [N, in_channels, H, W]
        returns: [N, out_channels, H, W], half the size when it downsamples; and the pooling's
            indices [N, in_channels, H / 2, W / 2], or None
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dropout: float,
        kind: str = "regular",
        dilation: int = 1,
        downsample: bool = False,
    ) -> None:
        super().__init__()
        hidden = out_channels // 4
        step = 2 if downsample else 1
        self.downsample = downsample
        self.extra_channels = out_channels - in_channels
        self.main = nn.Sequential(
            nn.Conv2d(in_channels, hidden, step, stride=step, bias=False),
            nn.BatchNorm2d(hidden, eps=EPS),
            nn.PReLU(hidden),
            _main_conv(hidden, kind, dilation),
            nn.BatchNorm2d(hidden, eps=EPS),
            nn.PReLU(hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels, eps=EPS),
            nn.Dropout2d(dropout),
        )
        self.act = nn.PReLU(out_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        y, indices = self.main(x), None
        if self.downsample:
            x, indices = F.max_pool2d(x, 2, return_indices=True)
        if self.extra_channels:
            x = F.pad(x, (0, 0, 0, 0, 0, self.extra_channels))
        return self.act(x + y), indices


class UpBottleneck(nn.Module):
    """Bottleneck of the decoder, with ReLU; when it upsamples, its skip unpools by `indices`.

    Shape:
        x: [N, in_channels, H, W]
        indices: int64 [N, out_channels, H, W] of the mirrored downsampling, or None
        returns: [N, out_channels, 2H, 2W], or [N, out_channels, H, W] without upsampling
    """

    def __init__(self, in_channels: int, out_channels: int, *, upsample: bool = False) -> None:
        super().__init__()
        hidden = in_channels // 4 if not upsample else out_channels // 4
        main: nn.Module = nn.Conv2d(hidden, hidden, 3, padding=1)
        if upsample:
            main = nn.ConvTranspose2d(hidden, hidden, 3, 2, padding=1, output_padding=1)
        self.main = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden, eps=EPS),
            nn.ReLU(inplace=True),
            main,
            nn.BatchNorm2d(hidden, eps=EPS),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels, eps=EPS),
        )
        self.skip: nn.Module = nn.Identity()
        if upsample:
            self.skip = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels, eps=EPS),
            )

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        y, x = self.main(x), self.skip(x)
        if indices is not None:
            x = max_unpool(x, indices, y.shape[2:])
        return F.relu(x + y)


class ENet(nn.Module):
    """Large encoder (stages 1 to 3, stride 8), small decoder (stages 4, 5; Table 1).

    Shape:
        x: [N, in_channels, H, W], H and W at least 32
        returns: {"out": [N, num_classes, H, W]}
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.initial = InitialBlock(in_channels)
        self.stage1 = nn.ModuleList([Bottleneck(16, 64, dropout=0.01, downsample=True)])
        self.stage1.extend(Bottleneck(64, 64, dropout=0.01) for _ in range(4))
        self.stage2 = nn.ModuleList([Bottleneck(64, 128, dropout=0.1, downsample=True)])
        self.stage3 = nn.ModuleList()
        for stage in (self.stage2, self.stage3):
            stage.extend(
                Bottleneck(128, 128, dropout=0.1, kind=kind, dilation=dilation)
                for kind, dilation in CONTEXT
            )
        self.stage4 = nn.ModuleList([UpBottleneck(128, 64, upsample=True)])
        self.stage4.extend(UpBottleneck(64, 64) for _ in range(2))
        self.stage5 = nn.ModuleList([UpBottleneck(64, 16, upsample=True), UpBottleneck(16, 16)])
        self.classifier = nn.ConvTranspose2d(16, num_classes, 2, stride=2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = check_images(x, self.in_channels)
        x = self.initial(pad_to_multiple(x, 8))
        places: list[Tensor] = []
        for block in (*self.stage1, *self.stage2, *self.stage3):
            x, indices = block(x)
            if indices is not None:
                places.append(indices)
        for stage in (self.stage4, self.stage5):
            for index, block in enumerate(stage):
                x = block(x, places.pop() if index == 0 else None)
        return {"out": crop_to(self.classifier(x), size)}


def enet(*, num_classes: int, in_channels: int = 3) -> ENet:
    """ENet.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the images.
    """
    return ENet(in_channels, num_classes)
