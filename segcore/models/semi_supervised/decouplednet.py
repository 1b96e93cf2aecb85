"""DecoupledNet: which classes are there, then where each of them is, by two nets and a bridge.

The classification net learns from image-level labels. What it would change to raise the score of
a class, by back-propagation to its last pooling, is that class's activation map; a segmentation
net, run once per class present, tells this class from all else.

Reference: Hong, Noh & Han 2015, arXiv:1506.04924; HyeonwooNoh/DecoupledNet.
"""

from collections.abc import Iterator
from itertools import chain, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.encoders import create_encoder
from segcore.encoders.base import TrunkEncoder
from segcore.encoders.vgg import LAYOUTS, WIDTHS
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

CARDS = {
    "decouplednet": ModelCard(
        name="decouplednet",
        title="DecoupledNet",
        paper="Hong, Noh & Han 2015, Decoupled Deep Neural Network for Semi-supervised Semantic "
        "Segmentation, arXiv:1506.04924",
        year=2015,
        task="semi_supervised",
        parameters=307_454_487,
        published={
            "voc2012_test_miou": 66.6,
            "voc2012_test_miou_25_per_class": 62.5,
            "voc2012_test_miou_10_per_class": 58.7,
            "voc2012_test_miou_5_per_class": 54.7,
        },
        notes="The count is of this code: none was published. Smaller images than 256 are padded "
        "to that. Activation maps are summed over positions and their batch norm has a smaller "
        "epsilon, as untrained nets give maps of 1e-4. Combinatorial cropping is left out: a crop "
        "is a run per class that it holds.",
        exceptions=("export", "compile"),
    )
}
ABSENT = -30.0  # log-odds of classes that the classification net does not see
SMALLEST = 1e-12


class UpConvNormAct(nn.Sequential):
    """Full convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, padding: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(in_channels, out_channels, kernel_size, padding=padding),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class DecoupledNet(nn.Module):
    """Classification net, bridging layers, segmentation net (Fig. 1, 2).

    Args:
        encoder: VGG.
        num_classes: channels of the logits.
        layout: convolutions before each pooling of the encoder, which the decoder mirrors.
        head_kernel: window of the first fully connected layer, in strides of 32.
        fc_channels: width of the classification net's fully connected layers.
        bridge_channels: width of the bridging layers.
        dropout: after each fully connected layer of the classification net.
        threshold: probability from which a class is present.
        background: class that is where no other is; None: the present ones share all pixels.

    Shape:
        x: [N, in_channels, H, W], H and W at least 32
        returns: {"out": [N, num_classes, H, W]}, log-odds of each class against all else
    """

    def __init__(
        self,
        encoder: TrunkEncoder,
        num_classes: int,
        *,
        layout: tuple[int, ...],
        head_kernel: int,
        fc_channels: int,
        bridge_channels: int,
        dropout: float,
        threshold: float,
        background: int | None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.dropout = dropout
        self.threshold = threshold
        self.background = background
        self.smallest = 32 * (head_kernel + 1)  # two positions keep batch norm defined
        self.encoder = encoder
        deep = WIDTHS[-1]
        self.fc6 = nn.Conv2d(deep, fc_channels, head_kernel)
        self.fc7 = nn.Conv2d(fc_channels, fc_channels, 1)
        self.score = nn.Conv2d(fc_channels, num_classes, 1)
        self.spatial_norm = nn.BatchNorm2d(deep)
        self.specific_norm = nn.BatchNorm2d(deep, eps=SMALLEST)
        self.bridge = nn.Sequential(
            nn.Conv2d(2 * deep, bridge_channels, head_kernel),
            nn.BatchNorm2d(bridge_channels),
            nn.ReLU(inplace=True),
            ConvNormAct(bridge_channels, bridge_channels, kernel_size=1),
            UpConvNormAct(bridge_channels, deep, head_kernel, 0),
        )
        self.decoder = nn.ModuleList()
        above = (WIDTHS[0], *WIDTHS[:-1])
        for count, width, after in reversed(list(zip(layout, WIDTHS, above, strict=True))):
            sides = [width] * count + [after]
            stage = [UpConvNormAct(a, b, 3, 1) for a, b in pairwise(sides)]
            self.decoder.append(nn.Sequential(*stage))
        self.classifier = nn.Conv2d(WIDTHS[0], 2, 1)
        for part in (self.fc6, self.fc7, self.bridge, self.decoder):
            init_he(part)
        for head in (self.score, self.classifier):
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]

    def classification_parameters(self) -> Iterator[nn.Parameter]:
        """Of the net that learns from image-level labels."""
        parts = (self.encoder, self.fc6, self.fc7, self.score)
        return chain.from_iterable(part.parameters() for part in parts)

    def segmentation_parameters(self) -> Iterator[nn.Parameter]:
        """Of the bridge and the net that learns from masks."""
        parts = (
            self.spatial_norm, self.specific_norm, self.bridge, self.decoder, self.classifier,
        )  # fmt: skip
        return chain.from_iterable(part.parameters() for part in parts)

    def scores(self, x: Tensor) -> Tensor:
        """Log-odds [N, num_classes] that a class is in the image x [N, in_channels, H, W]."""
        check_images(x, self.encoder.in_channels)
        return self._score(self._encode(x)[0])

    def maps(self, x: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
        """One run of the segmentation net per pair of an image and a class.

        Shape:
            x: [N, in_channels, H, W]
            rows, classes: int64 [P], of the images and the classes
            returns: [P, 2, H, W], logits of all else and of the class
        """
        size = check_images(x, self.encoder.in_channels)
        pooled, switches = self._encode(x)
        return crop_to(self._segment(pooled, switches, rows, classes), size)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = check_images(x, self.encoder.in_channels)
        pooled, switches = self._encode(x)
        present = self._present(self._score(pooled))
        out = x.new_full((len(x), self.num_classes, *size), ABSENT)
        for index in present.any(0).nonzero().flatten().tolist():
            rows = present[:, index].nonzero().flatten()
            pair = self._segment(pooled, switches, rows, torch.full_like(rows, index))
            odds = crop_to(pair[:, 1:] - pair[:, :1], size)[:, 0]
            out[rows, index] = odds.clamp(min=ABSENT / 2).to(out.dtype)
        if self.background is not None:
            out[:, self.background] = 0.0
        return {"out": out}

    def _present(self, scores: Tensor) -> Tensor:
        """Classes [N, num_classes] above the threshold, the likeliest one at least."""
        odds = scores.detach().float().clone()
        if self.background is not None:
            odds[:, self.background] = -torch.inf
        present = odds.sigmoid() > self.threshold
        return present.scatter(1, odds.argmax(1, keepdim=True), True)

    def _encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The last pooling, and where each pooling found its maxima."""
        x = pad_to_multiple(x, 32, minimum=self.smallest)
        switches = []
        for layer in self.encoder.trunk:
            if isinstance(layer, nn.MaxPool2d):
                x, indices = F.max_pool2d(x, 2, return_indices=True)
                switches.append(indices)
            else:
                x = layer(x)
        return x, switches

    def _score(self, pooled: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.fc6(pooled)), self.dropout, self.training)
        x = F.dropout(F.relu(self.fc7(x)), self.dropout, self.training)
        scores: Tensor = self.score(x).mean((2, 3))
        return scores

    def activation_maps(self, pooled: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
        """Gradient of a class's scores, summed over positions, by the last pooling [P, C, h, w].

        Back-propagation is written out, so that it also runs where no gradients are kept.
        """
        fc6 = F.relu(self.fc6(pooled))
        fc7 = F.relu(self.fc7(fc6))
        gradient = self.score.weight[classes] * (fc7 > 0)[rows]
        gradient = F.conv_transpose2d(gradient, self.fc7.weight) * (fc6 > 0)[rows]
        return F.conv_transpose2d(gradient, self.fc6.weight)

    def _segment(
        self, pooled: Tensor, switches: list[Tensor], rows: Tensor, classes: Tensor
    ) -> Tensor:
        specific = self.specific_norm(self.activation_maps(pooled, rows, classes))
        x = self.bridge(torch.cat([self.spatial_norm(pooled)[rows], specific], 1))
        for stage, indices in zip(self.decoder, reversed(switches), strict=True):
            x = stage(F.max_unpool2d(x, indices[rows], [2, 2]))
        logits: Tensor = self.classifier(x)
        return logits


def decouplednet(
    *,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    backbone: str = "vgg16",
    head_kernel: int = 7,
    fc_channels: int = 4096,
    bridge_channels: int = 2048,
    dropout: float = 0.5,
    threshold: float = 0.5,
    background: int | None = None,
) -> DecoupledNet:
    """DecoupledNet; the paper's encoder is vgg16.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the images.
        pretrained: ImageNet weights in the encoder.
        backbone: vgg11 to vgg19, or with batch norm, vgg11_bn to vgg19_bn.
        head_kernel: window of fc6, in strides of 32; images are padded to one more.
        fc_channels: width of fc6 and fc7.
        bridge_channels: width of the bridging layers.
        dropout: of fc6 and fc7.
        threshold: probability from which a class is present.
        background: index of the class that is where no other is (VOC: 0); None where there is none.

    Raises:
        OptionError: an option has no such value.
    """
    check_choice("backbone", backbone, (*LAYOUTS, *(f"{name}_bn" for name in LAYOUTS)))
    for name, value in (
        ("head_kernel", head_kernel),
        ("fc_channels", fc_channels),
        ("bridge_channels", bridge_channels),
    ):
        if value < 1:
            raise OptionError(f"{name} is {value!r}: give at least 1")
    if background is not None and not 0 <= background < num_classes:
        raise OptionError(
            f"background is {background}, and there are {num_classes} classes: give its index, or "
            "null"
        )
    encoder = create_encoder(backbone, in_channels=in_channels, pretrained=pretrained)
    if not isinstance(encoder, TrunkEncoder):
        raise OptionError(f"backbone {backbone!r} has no poolings to undo: take a vgg")
    return DecoupledNet(
        encoder,
        num_classes,
        layout=LAYOUTS[backbone.removesuffix("_bn")],
        head_kernel=head_kernel,
        fc_channels=fc_channels,
        bridge_channels=bridge_channels,
        dropout=dropout,
        threshold=threshold,
        background=background,
    )
