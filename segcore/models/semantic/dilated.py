"""Dilated front end and context module.

Reference: Yu & Koltun 2016, arXiv:1511.07122; fyu/dilation for paddings and the CamVid network.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segcore.encoders.vgg import LAYOUTS, WIDTHS
from segcore.errors import OptionError
from segcore.models.blocks import (
    check_choice,
    check_images,
    pad_to_multiple,
    reflect_pad,
    resize,
)
from segcore.models.card import ModelCard

CARDS = {
    "dilated": ModelCard(
        name="dilated",
        title="Dilated front end with context module (Dilation8)",
        paper="Yu & Koltun 2016, Multi-Scale Context Aggregation by Dilated Convolutions, "
        "arXiv:1511.07122",
        year=2016,
        task="semantic",
        parameters=134_374_973,
        counts={11: 134_313_443},
        published={"camvid_miou": 65.3, "voc2012_test_miou_front_end": 67.6},
        notes="The default is the CamVid network (basic context). context='large' is the VOC "
        "network with 141,149,720 parameters at 21 classes; context=None the front end alone.",
    )
}
STRIDE = 8
MARGIN = 186  # of reflected image on each side: what the valid convolutions consume
FC_CHANNELS = 4096
DILATIONS = (1, 1, 2, 4, 8, 16, 1)
CONTEXT_MARGIN = sum(DILATIONS)
CONTEXT_WIDTHS: dict[str, tuple[int, ...]] = {
    "basic": (1, 1, 1, 1, 1, 1, 1),
    "large": (2, 2, 4, 8, 16, 32, 32),
}


def front_end(in_channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    """VGG16 without padding, without pool4 and pool5; conv5 dilated by 2, fc6 by 4 (section 4)."""
    layers: list[nn.Module] = []
    channels = in_channels
    for stage, (convolutions, width) in enumerate(zip(LAYOUTS["vgg16"], WIDTHS, strict=True)):
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, width, 3, dilation=2 if stage == 4 else 1)]
            layers += [nn.ReLU(inplace=True)]
            channels = width
        if stage < 3:
            layers.append(nn.MaxPool2d(2))
    for kernel, dilation in ((7, 4), (1, 1)):
        layers += [nn.Conv2d(channels, FC_CHANNELS, kernel, dilation=dilation)]
        layers += [nn.ReLU(inplace=True), nn.Dropout(dropout)]
        channels = FC_CHANNELS
    return nn.Sequential(*layers, nn.Conv2d(FC_CHANNELS, num_classes, 1))


class ContextModule(nn.Sequential):
    """Seven 3x3 convolutions of growing dilation and a 1x1; starts as identity (section 3).

    Args:
        channels: C of the logits that come in and go out.
        widths: multiples of C after each 3x3 convolution.
        noise: standard deviation added to the identity.

    Shape:
        x, returns: [N, channels, H, W]
    """

    def __init__(self, channels: int, widths: Sequence[int], *, noise: float = 0.01) -> None:
        layers: list[nn.Module] = [nn.ZeroPad2d(CONTEXT_MARGIN)]
        before = channels
        for dilation, multiple in zip(DILATIONS, widths, strict=True):
            conv = nn.Conv2d(before, multiple * channels, 3, dilation=dilation)
            init_identity(conv, channels, noise=noise)
            layers += [conv, nn.ReLU(inplace=True)]
            before = multiple * channels
        last = nn.Conv2d(before, channels, 1)
        init_identity(last, channels, noise=noise)
        super().__init__(*layers, last)


def init_identity(conv: nn.Conv2d, channels: int, *, noise: float) -> None:
    """Each output map copies its group of input maps: C / c_out at the kernel's centre (eq. 5).

    Args:
        conv: between widths that are multiples of channels.
        channels: C; maps a and b match where a * C // c_in equals b * C // c_out.
        noise: standard deviation of what is added to every weight.
    """
    c_out, c_in, height, width = conv.weight.shape
    group_in = torch.arange(c_in) * channels // c_in
    group_out = torch.arange(c_out) * channels // c_out
    match = (group_out[:, None] == group_in[None, :]).to(conv.weight.dtype)
    with torch.no_grad():
        conv.weight.normal_(std=noise)
        conv.weight[:, :, height // 2, width // 2] += match * channels / c_out
        if conv.bias is not None:
            conv.bias.zero_()


class Dilated(nn.Module):
    """Front end at stride 8, context module, bilinear x8.

    Shape:
        x: [N, in_channels, H, W], H and W at least 32
        returns: {"out": [N, num_classes, H, W]}; "aux" are the front end's own logits
    """

    def __init__(
        self, in_channels: int, num_classes: int, *, context: str | None, dropout: float
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.front = front_end(in_channels, num_classes, dropout)
        for module in self.front:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.front[-1].weight, std=0.001)  # type: ignore[arg-type]
        self.context: nn.Module = nn.Identity()
        if context is not None:
            self.context = ContextModule(num_classes, CONTEXT_WIDTHS[context])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        height, width = check_images(x, self.in_channels)
        padded = pad_to_multiple(x, STRIDE)
        front = self.front(reflect_pad(padded, MARGIN))
        maps = {"out": self.context(front)}
        if self.training and not isinstance(self.context, nn.Identity):
            maps["aux"] = front
        return {
            name: resize(logits, padded.shape[2:])[:, :, :height, :width]
            for name, logits in maps.items()
        }


def dilated(
    *,
    num_classes: int,
    in_channels: int = 3,
    context: str | None = "basic",
    dropout: float = 0.5,
) -> Dilated:
    """Dilated front end and context module; the default is the CamVid network.

    The paper trains front end and context one after the other; here both learn at once, and the
    front end's own logits are the auxiliary output that keeps them a segmentation.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the images.
        context: "basic", "large", or None for the front end alone.
        dropout: after fc6 and fc7.

    Raises:
        OptionError: unknown context, or dropout outside [0, 1).
    """
    check_choice("context", context, (*CONTEXT_WIDTHS, None))
    if not 0 <= dropout < 1:
        raise OptionError(f"dropout is {dropout!r}: give a probability in [0, 1)")
    return Dilated(in_channels, num_classes, context=context, dropout=dropout)
