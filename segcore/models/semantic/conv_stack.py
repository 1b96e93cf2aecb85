"""The naive stack: same-padded convolutions at full resolution, no downsampling.

It shows what encoders are for: its receptive field is 2 depth + 1 pixels, its memory grows with
H * W * width * depth.
"""

from torch import Tensor, nn

from segcore.errors import OptionError
from segcore.models.blocks import check_images, init_he
from segcore.models.card import ModelCard

CARDS = {
    "conv_stack": ModelCard(
        name="conv_stack",
        title="Naive full-resolution stack",
        paper="No publication; Badrinarayanan et al. 2017, arXiv:1511.00561, report that a SegNet "
        "without sub-sampling takes more memory and performs poorly",
        year=2017,
        task="semantic",
        parameters=187_797,
        counts={11: 187_147},
        notes="9 C_in w + w + (depth - 1)(9 w^2 + w) + w C + C with w = 64, depth = 6.",
    )
}


class ConvStack(nn.Module):
    """`depth` 3x3 convolutions with ReLU, then a 1x1.

    Shape:
        x: [N, in_channels, H, W], H and W at least 32
        returns: {"out": [N, num_classes, H, W]}
    """

    def __init__(self, in_channels: int, num_classes: int, *, depth: int, width: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        layers: list[nn.Module] = []
        for index in range(depth):
            layers.append(nn.Conv2d(width if index else in_channels, width, 3, padding=1))
            layers.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, num_classes, 1))
        init_he(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        check_images(x, self.in_channels)
        return {"out": self.layers(x)}


def conv_stack(
    *, num_classes: int, in_channels: int = 3, depth: int = 6, width: int = 64
) -> ConvStack:
    """The naive stack.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the images.
        depth: number of 3x3 convolutions; the receptive field is 2 depth + 1.
        width: their channels.

    Raises:
        OptionError: depth or width below 1.
    """
    if min(depth, width) < 1:
        raise OptionError(f"depth={depth}, width={width}: give at least 1")
    return ConvStack(in_channels, num_classes, depth=depth, width=width)
