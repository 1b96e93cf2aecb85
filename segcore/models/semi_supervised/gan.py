"""A GAN whose discriminator is the segmenter: every pixel is of a class, or it is fake.

Reference: Souly, Spampinato & Shah 2017, Semi and Weakly Supervised Semantic Segmentation Using
Generative Adversarial Network, arXiv:1703.09695.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from segcore.errors import OptionError
from segcore.models import create_model, list_models, model_card
from segcore.models.blocks import crop_to
from segcore.models.card import ModelCard

CARDS = {
    "gan": ModelCard(
        name="gan",
        title="Semi- and weakly supervised GAN",
        paper="Souly, Spampinato & Shah 2017, Semi and Weakly Supervised Semantic Segmentation "
        "Using Generative Adversarial Network, arXiv:1703.09695",
        year=2017,
        task="semi_supervised",
        parameters=138_083_717,
        notes="The count is of this code with its default segmenter: none was published. The "
        "paper's discriminator is a VGG16 network; here it is any semantic architecture. The "
        "generator's noise is a field with a position for every 32 pixels, half of it common to "
        "the whole image, so that generated images have the size of the others.",
    )
}
STRIDE = 32
LEVELS = 5


class Generator(nn.Sequential):
    """Five full convolutions, each to twice the size, from noise to an image in 0..1.

    Shape:
        z: [N, in_channels, h, w]
        returns: [N, out_channels, 32 h, 32 w]
    """

    def __init__(self, in_channels: int, out_channels: int, base_channels: int) -> None:
        widths = [base_channels * 2**level for level in reversed(range(LEVELS - 1))]
        layers: list[nn.Module] = []
        for before, after in zip([in_channels, *widths], widths, strict=False):
            layers += [
                nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        last = nn.ConvTranspose2d(widths[-1], out_channels, 4, stride=2, padding=1)
        super().__init__(*layers, last, nn.Sigmoid())
        for layer in self:
            if isinstance(layer, nn.ConvTranspose2d):
                nn.init.normal_(layer.weight, std=0.02)


class SegmentingGAN(nn.Module):
    """A segmenter of num_classes + 1 classes, the last of which is "fake", and a generator.

    As a model it is the segmenter alone: "out" has the real classes.

    Args:
        segmenter: images to {"out": [N, num_classes + 1, H, W], optional "aux..."}.
        in_channels: channels of the images.
        num_classes: without the fake one.
        noise: channels of the noise.
        base_channels: of the generator's last hidden layer.
        weak: the generator is told which classes its image is to have.

    Shape:
        x: [N, in_channels, H, W]
        returns: {"out": [N, num_classes, H, W]}
    """

    def __init__(
        self,
        segmenter: nn.Module,
        in_channels: int,
        num_classes: int,
        *,
        noise: int,
        base_channels: int,
        weak: bool,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.noise = noise
        self.weak = weak
        self.segmenter = segmenter
        self.generator = Generator(noise + (num_classes if weak else 0), in_channels, base_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: logits[:, : self.num_classes] for name, logits in self.judge(x).items()}

    def judge(self, x: Tensor) -> dict[str, Tensor]:
        """The segmenter's outputs, with the fake class."""
        outputs: Any = self.segmenter(x)
        return {"out": outputs} if isinstance(outputs, Tensor) else outputs

    def generate(self, count: int, size: tuple[int, int], classes: Tensor | None = None) -> Tensor:
        """Images of torch's random noise, float in 0..1.

        Args:
            count: N.
            size: (height, width).
            classes: float [N, num_classes], 1 for those that an image is to have; where `weak`.

        Shape:
            returns: [N, in_channels, height, width]
        """
        height, width = (-(-side // STRIDE) for side in size)
        device = next(self.generator.parameters()).device
        common = self.noise // 2
        # From the CPU's generator, the one that a resumed run restores everywhere.
        z = torch.randn(count, self.noise, height, width)
        z[:, :common] = z[:, :common, :1, :1]
        z = z.to(device)
        if self.weak:
            if classes is None:
                raise OptionError("classes is None, and this generator is told classes: give them")
            field = classes.to(z)[:, :, None, None].expand(-1, -1, height, width)
            z = torch.cat([z, field], 1)
        image: Tensor = self.generator(z)
        return crop_to(image, size)


def gan(
    *,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    segmenter: str = "fcn8s",
    segmenter_options: Mapping[str, Any] | None = None,
    noise: int = 100,
    base_channels: int = 64,
    weak: bool = False,
) -> SegmentingGAN:
    """The GAN around a semantic architecture; the paper's is VGG16, fully convolutional.

    Args:
        num_classes: channels of the logits, without the fake class; at least 2.
        in_channels: channels of the images.
        pretrained: ImageNet weights in the segmenter's backbone.
        segmenter: name of a semantic architecture.
        segmenter_options: of that architecture.
        noise: channels of the noise.
        base_channels: of the generator's last hidden layer; doubled at each level before.
        weak: the generator is told the classes of an image, which weakly labelled images have too.

    Raises:
        OptionError: the segmenter is no semantic architecture of images, or an option is wrong.
    """
    if num_classes < 2:
        raise OptionError(f"num_classes is {num_classes}: gan needs 2 at least, background as one")
    if noise < 2 or base_channels < 1:
        raise OptionError(
            f"noise is {noise} and base_channels {base_channels}: give at least 2 and 1"
        )
    own = ":" not in segmenter  # torchvision's have no card
    if own and (segmenter not in list_models("semantic") or model_card(segmenter).input_dims != 2):
        raise OptionError(f"segmenter is {segmenter!r}: take a semantic architecture of images")
    model = create_model(
        segmenter,
        num_classes=num_classes + 1,
        in_channels=in_channels,
        pretrained=pretrained,
        **(segmenter_options or {}),
    )
    return SegmentingGAN(
        model, in_channels, num_classes, noise=noise, base_channels=base_channels, weak=weak
    )
