"""3D U-Net: the U-Net of volumes, whose widths double before each pooling.

Reference: Cicek et al. 2016, arXiv:1606.06650.
"""

import torch
from torch import Tensor, nn

from segcore.errors import ShapeError
from segcore.models.blocks import check_choice, check_images, crop_to, init_he, pad_to_multiple
from segcore.models.card import ModelCard

MIN_SIZE = 16
CARDS = {
    "unet3d": ModelCard(
        name="unet3d",
        title="3D U-Net",
        paper="Cicek, Abdulkadir, Lienkamp, Brox & Ronneberger 2016, 3D U-Net: Learning Dense "
        "Volumetric Segmentation from Sparse Annotation, arXiv:1606.06650",
        year=2016,
        task="semantic",
        parameters=19_076_693,
        counts={3: 19_075_523},
        published={"xenopus_kidney_iou": 0.863},
        notes="The paper prints 19,069,955 at 3 classes, without the 5,568 parameters of batch "
        "norm and of the up-convolutions' biases.",
        input_dims=3,
        min_size=MIN_SIZE,
    )
}
# (first, second) width of each level, the bottom last.
LEVELS = ((32, 64), (64, 128), (128, 256), (256, 512))


class ConvNormReLU3d(nn.Sequential):
    """3x3x3 convolution, batch norm, ReLU.

    Shape:
        x: [N, in_channels, D, H, W]
        returns: [N, out_channels, D, H, W]; 2 less on each axis without padding
    """

    def __init__(self, in_channels: int, out_channels: int, *, padding: int) -> None:
        super().__init__(
            nn.Conv3d(in_channels, out_channels, 3, padding=padding),
            nn.BatchNorm3d(out_channels),
            nn.ReLU(inplace=True),
        )


class UNet3D(nn.Module):
    """Three levels down, three up, joined by concatenation (Fig. 2).

    Shape:
        x: [N, in_channels, D, H, W], every side at least 16; 132 x 132 x 116 gives 44 x 44 x 28
            for padding="valid"
        returns: {"out": [N, num_classes, D, H, W]}
    """

    def __init__(self, in_channels: int, num_classes: int, *, padding: str = "same") -> None:
        super().__init__()
        self.in_channels = in_channels
        self.padding = padding
        pad = 1 if padding == "same" else 0
        self.down = nn.ModuleList()
        channels = in_channels
        for first, second in LEVELS:
            self.down.append(
                nn.Sequential(
                    ConvNormReLU3d(channels, first, padding=pad),
                    ConvNormReLU3d(first, second, padding=pad),
                )
            )
            channels = second
        self.pool = nn.MaxPool3d(2)
        self.up, self.merge = nn.ModuleList(), nn.ModuleList()
        for _, skip in reversed(LEVELS[:-1]):
            self.up.append(nn.ConvTranspose3d(channels, channels, 2, stride=2))
            self.merge.append(
                nn.Sequential(
                    ConvNormReLU3d(channels + skip, skip, padding=pad),
                    ConvNormReLU3d(skip, skip, padding=pad),
                )
            )
            channels = skip
        self.classifier = nn.Conv3d(channels, num_classes, 1)
        init_he(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = check_images(x, self.in_channels, dims=3, min_size=MIN_SIZE)
        if self.padding == "valid":
            return {"out": self.logits(x)}
        stride = 2 ** (len(LEVELS) - 1)
        return {"out": crop_to(self.logits(pad_to_multiple(x, stride)), size)}

    def logits(self, x: Tensor) -> Tensor:
        """Logits of a volume whose sides fit all three poolings."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level:
                self._check_even(x)
                x = self.pool(x)
            x = block(x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = up(x)
            x = merge(torch.cat([center_crop(skips.pop(), x), x], dim=1))
        logits: Tensor = self.classifier(x)
        return logits

    def _check_even(self, x: Tensor) -> None:
        if any(side % 2 or side < 2 for side in x.shape[2:]):
            raise ShapeError(
                f"padding='valid' meets sides {tuple(x.shape[2:])} before a pooling, which must be "
                "even: give sides of 92 + 8 k or 132 x 132 x 116, or take padding='same'"
            )


def center_crop(skip: Tensor, x: Tensor) -> Tensor:
    """Cut the border voxels of `skip` that valid convolutions lost in `x`."""
    for axis in (2, 3, 4):
        start = (skip.shape[axis] - x.shape[axis]) // 2
        skip = skip.narrow(axis, start, x.shape[axis])
    return skip


def unet3d(*, num_classes: int, in_channels: int = 3, padding: str = "same") -> UNet3D:
    """3D U-Net.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the volumes.
        padding: "same" keeps the size; "valid" is the paper's.

    Raises:
        OptionError: unknown padding.
    """
    check_choice("padding", padding, ("same", "valid"))
    return UNet3D(in_channels, num_classes, padding=padding)
