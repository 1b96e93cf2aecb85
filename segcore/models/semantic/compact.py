"""The compact FCN and U-Net of a speed comparison: 4x4 kernels, stride 2, nothing else.

Reference: Lambda Labs, lambda-deep-learning-demo (2019); the layers are those of its counts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.errors import OptionError
from segcore.models.blocks import check_choice, check_images, crop_to, init_he, pad_to_multiple
from segcore.models.card import ModelCard
from segcore.models.upsampling import UPSAMPLINGS, create_upsample

PAPER = "Lambda Labs 2019, lambda-deep-learning-demo, image segmentation"
CARDS = {
    "fcn_small": ModelCard(
        name="fcn_small",
        title="Compact FCN",
        paper=PAPER,
        year=2019,
        task="semantic",
        parameters=1_389_269,
        counts={11: 1_384_139, 12: 1_384_652},
        published={"camvid_pixel_accuracy": 86.6, "images_per_s_gtx_1080_ti": 185},
    ),
    "unet_small": ModelCard(
        name="unet_small",
        title="Compact U-Net",
        paper=PAPER,
        year=2019,
        task="semantic",
        parameters=1_563_861,
        counts={11: 1_553_611, 12: 1_554_636},
        published={"camvid_pixel_accuracy": 86.9, "images_per_s_gtx_1080_ti": 160},
    ),
}
LEVELS = 4
KERNEL = 4


class CompactNet(nn.Module):
    """Four strided convolutions down, four doublings up, each of 4x4 kernels.

    Args:
        in_channels: channels of the images.
        num_classes: channels of the logits.
        base_channels: width after the first convolution; doubled at each level.
        skips: concatenate encoder maps on the way up (the U-Net).
        upsample: a name of `segcore.models.upsampling.UPSAMPLINGS`.

    Shape:
        x: [N, in_channels, H, W], H and W at least 32
        returns: {"out": [N, num_classes, H, W]}
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        base_channels: int,
        skips: bool,
        upsample: str,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.skips = skips
        widths = [base_channels * 2**level for level in range(LEVELS)]
        self.down = nn.ModuleList(
            nn.Conv2d(before, after, KERNEL, stride=2, padding=1)
            for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        outputs = [*reversed(widths[:-1]), num_classes]
        inputs = list(reversed(widths))
        self.up = nn.ModuleList(
            create_upsample(
                upsample, before * (2 if skips and level else 1), after, kernel_size=KERNEL
            )
            for level, (before, after) in enumerate(zip(inputs, outputs, strict=True))
        )
        init_he(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = check_images(x, self.in_channels)
        x = pad_to_multiple(x, 2**LEVELS)
        maps: list[Tensor] = []
        for down in self.down:
            x = F.relu(down(x))
            maps.append(x)
        for level, up in enumerate(self.up):
            skip = maps.pop()
            if self.skips and level:
                x = torch.cat([x, skip], dim=1)
            x = up(x)
            x = F.relu(x) if maps else x
        return {"out": crop_to(x, size)}


def _build(
    num_classes: int, in_channels: int, base_channels: int, upsample: str, *, skips: bool
) -> CompactNet:
    check_choice("upsample", upsample, UPSAMPLINGS)
    if base_channels < 1:
        raise OptionError(f"base_channels is {base_channels!r}: give at least 1")
    return CompactNet(
        in_channels, num_classes, base_channels=base_channels, skips=skips, upsample=upsample
    )


def fcn_small(
    *,
    num_classes: int,
    in_channels: int = 3,
    base_channels: int = 32,
    upsample: str = "transposed",
) -> CompactNet:
    """The compact FCN: no skips."""
    return _build(num_classes, in_channels, base_channels, upsample, skips=False)


def unet_small(
    *,
    num_classes: int,
    in_channels: int = 3,
    base_channels: int = 32,
    upsample: str = "transposed",
) -> CompactNet:
    """The compact U-Net: encoder maps are concatenated."""
    return _build(num_classes, in_channels, base_channels, upsample, skips=True)
