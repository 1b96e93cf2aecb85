"""G-FRNet: coarse labels refined stage by stage, each encoder map gated by a deeper one.

Reference: Islam, Rochan, Bruce & Wang 2017, Gated Feedback Refinement Network, CVPR 2017; the
authors' CamVid prototxt for layers and counts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.encoders.vgg import LAYOUTS, WIDTHS
from segcore.errors import OptionError
from segcore.models.blocks import (
    check_choice,
    check_images,
    crop_to,
    init_subpixels,
    pad_to_multiple,
    resize,
)
from segcore.models.card import ModelCard
from segcore.models.upsampling import UPSAMPLINGS, create_upsample

CARDS = {
    "gfrnet": ModelCard(
        name="gfrnet",
        title="G-FRNet (VGG16)",
        paper="Islam, Rochan, Bruce & Wang 2017, Gated Feedback Refinement Network for Dense Image "
        "Labeling, CVPR, doi:10.1109/CVPR.2017.518",
        year=2017,
        task="semantic",
        parameters=29_493_930,
        counts={11: 29_194_090},
        published={"camvid_miou": 68.0},
        notes="Follows the released prototxt, without the paper's extra 3x3 convolution in each "
        "refinement unit. Where batch norm and biases lie in the gates is inferred from its count.",
    )
}
FC_CHANNELS = 1024
# Width of the encoder map at each refinement stage: pool4, pool3, pool2, pool1, conv1_2.
STAGES = (512, 256, 128, 64, 64)


class GateUnit(nn.Module):
    """Filters an encoder map by a deeper one: both to C maps, multiplied (Fig. 3).

    Args:
        channels: of the encoder map.
        deep_channels: of the deeper encoder map; None where the coarse labels themselves gate.
        num_classes: C.

    Shape:
        x: [N, channels, H, W]
        deep: [N, deep_channels or C, h, w]
        returns: [N, C, H, W]
    """

    def __init__(self, channels: int, deep_channels: int | None, num_classes: int) -> None:
        super().__init__()
        self.fine = self._transform(channels, num_classes)
        self.deep: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        if deep_channels is not None:
            self.deep = self._transform(deep_channels, num_classes)
            self.norm = nn.BatchNorm2d(num_classes)

    @staticmethod
    def _transform(channels: int, num_classes: int) -> nn.Sequential:
        conv = nn.Conv2d(channels, num_classes, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(num_classes), nn.ReLU(inplace=True))

    def forward(self, x: Tensor, deep: Tensor) -> Tensor:
        gated: Tensor = self.norm(self.fine(x) * resize(self.deep(deep), x.shape[2:]))
        return gated


class GFRNet(nn.Module):
    """VGG16 encoder, a coarse label map, five gated refinements; supervised at all six (Fig. 2).

    Shape:
        x: [N, in_channels, H, W], H and W at least 32
        returns: {"out": [N, num_classes, H, W]}; in training "aux1" (coarsest) to "aux5" too
    """

    aux_weight = 1.0

    def __init__(
        self, in_channels: int, num_classes: int, *, dropout: float, upsample: str
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.encoder = nn.ModuleList()
        channels = in_channels
        for convolutions, width in zip(LAYOUTS["vgg16"], WIDTHS, strict=True):
            layers: list[nn.Module] = []
            for _ in range(convolutions):
                layers += conv_norm_relu(channels, width)
                channels = width
            self.encoder.append(nn.Sequential(*layers))
        self.dropout = nn.Dropout(dropout)
        self.bridge = nn.Sequential(
            *conv_norm_relu(channels, FC_CHANNELS),
            nn.Dropout(dropout),
            *conv_norm_relu(FC_CHANNELS, FC_CHANNELS),
            nn.Dropout(dropout),
        )
        self.coarse = nn.Conv2d(FC_CHANNELS, num_classes, 3, padding=1)
        self.gates = nn.ModuleList(
            GateUnit(width, deeper, num_classes)
            for width, deeper in zip(STAGES, (None, *STAGES), strict=False)
        )
        self.enlarge = nn.ModuleList(
            create_upsample(upsample, num_classes, num_classes, kernel_size=None) for _ in STAGES
        )
        self.refine = nn.ModuleList(
            nn.Conv2d(2 * num_classes, num_classes, 3, padding=1) for _ in STAGES
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        init_subpixels(self.enlarge)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = check_images(x, self.in_channels)
        x = pad_to_multiple(x, 1, minimum=64)
        padded = x.shape[2:]
        maps, x = self._encode(x)
        labels = [self.coarse(self.bridge(x))]
        deep = labels[0]
        stages = zip(self.gates, self.enlarge, self.refine, maps, strict=True)
        for gate, enlarge, refine, fine in stages:
            coarse = enlarge(labels[-1], size=fine.shape[2:])
            labels.append(refine(torch.cat([gate(fine, deep), coarse], dim=1)))
            deep = fine
        outputs = {"out": labels[-1]}
        if self.training:
            outputs |= {f"aux{stage}": label for stage, label in enumerate(labels[:-1], start=1)}
        return {name: crop_to(resize(y, padded), size) for name, y in outputs.items()}

    def _encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Encoder maps of each refinement stage, deepest first, and the map after pool5."""
        maps: list[Tensor] = []
        for stage, block in enumerate(self.encoder, start=1):
            x = block(x)
            if stage == 1:
                maps.append(x)
            x = F.max_pool2d(x, 2, ceil_mode=True)
            x = self.dropout(x) if stage >= 3 else x
            if stage < 5:
                maps.append(x)
        return maps[::-1], x


def conv_norm_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def gfrnet(
    *,
    num_classes: int,
    in_channels: int = 3,
    dropout: float = 0.5,
    upsample: str = "bilinear",
) -> GFRNet:
    """G-FRNet on VGG16.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the images.
        dropout: after pool3 to pool5, conv6 and conv7.
        upsample: of the labels before each refinement, a name of
            `segcore.models.upsampling.UPSAMPLINGS`.

    Raises:
        OptionError: dropout outside [0, 1), or an unknown upsample.
    """
    check_choice("upsample", upsample, UPSAMPLINGS)
    if not 0 <= dropout < 1:
        raise OptionError(f"dropout is {dropout!r}: give a probability in [0, 1)")
    return GFRNet(in_channels, num_classes, dropout=dropout, upsample=upsample)
