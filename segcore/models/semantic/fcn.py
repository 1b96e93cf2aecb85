"""FCN-32s, 16s, 8s: a classification network made convolutional, its scores fused by sum.

Reference: Long, Shelhamer & Darrell 2015, arXiv:1411.4038; fcn.berkeleyvision.org's prototxt.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from segcore.encoders import Encoder, create_encoder
from segcore.encoders.caffe import caffenet_trunk, vgg_trunk
from segcore.errors import OptionError
from segcore.models.blocks import check_choice, check_images, crop_to, pad_to_multiple
from segcore.models.card import ModelCard
from segcore.models.upsampling import init_bilinear

PAPER = (
    "Long, Shelhamer & Darrell 2015, Fully Convolutional Networks for Semantic Segmentation, "
    "arXiv:1411.4038"
)
NOTES = (
    "Deconvolutions start bilinear and are learned; deconv='fixed' freezes them as the release. "
    "backbone='alexnet' is CaffeNet; 'googlenet' is the published one (7,801,413 parameters at 21 "
    "classes), 'googlenet_bn' torchvision's; neither they nor resnets have the 100 px padding."
)
CARDS = {
    "fcn32s": ModelCard(
        name="fcn32s",
        title="FCN-32s",
        paper=PAPER,
        year=2015,
        task="semantic",
        parameters=136_152_917,
        counts={11: 134_801_227, 12: 134_899_532, 19: 135_817_043},
        published={"voc2011_seg11valid_miou": 63.6},
        notes=NOTES,
    ),
    "fcn16s": ModelCard(
        name="fcn16s",
        title="FCN-16s",
        paper=PAPER,
        year=2015,
        task="semantic",
        parameters=134_815_994,
        counts={11: 134_437_094, 12: 134_465_624, 19: 134_723_574},
        published={"voc2011_seg11valid_miou": 65.0},
        notes=NOTES,
    ),
    "fcn8s": ModelCard(
        name="fcn8s",
        title="FCN-8s",
        paper=PAPER,
        year=2015,
        task="semantic",
        parameters=134_489_759,
        counts={11: 134_348_929, 12: 134_360_420, 19: 134_456_985},
        published={"voc2011_seg11valid_miou": 65.5, "voc2012_test_miou": 67.2},
        notes=NOTES,
    ),
}
# Stride of the finest fused score -> crop offsets of the skips (pool4, pool3) and of the output.
CROPS = {32: ((), 19), 16: ((5,), 27), 8: ((5, 9), 31)}
CAFFENET_CROP = 18
DECONVS = ("learned", "fixed")
GOOGLENETS = {"googlenet": "googlenet_caffe", "googlenet_bn": "googlenet"}


def deconvolution(
    num_classes: int, kernel_size: int, stride: int, *, padding: int = 0
) -> nn.Module:
    """Dense transposed convolution between class scores, initialised bilinear, without bias."""
    layer = nn.ConvTranspose2d(
        num_classes, num_classes, kernel_size, stride, padding=padding, bias=False
    )
    init_bilinear(layer)
    return layer


def score_layer(channels: int, num_classes: int) -> nn.Conv2d:
    """1x1 convolution to class scores, zero-initialised as the paper says."""
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def crop_at(x: Tensor, offset: int, size: Sequence[int]) -> Tensor:
    """Caffe's Crop: `size` positions of each side from `offset` on."""
    return x[:, :, offset : offset + size[0], offset : offset + size[1]]


class FCN(nn.Module):
    """Scores of fc7, pool4 and pool3, deconvolved, cropped at the paper's offsets and summed.

    Shape:
        x: [N, in_channels, H, W], H and W at least 32
        returns: {"out": [N, num_classes, H, W]}
    """

    # A checkpoint of a coarser network initialises this one; its deconvolutions are its own.
    absent_in_siblings = ("score_skips", "upscores", "upscore_out")

    def __init__(
        self,
        trunk: nn.Module,
        skip_channels: Sequence[int],
        in_channels: int,
        num_classes: int,
        *,
        skip_crops: Sequence[int],
        output: tuple[int, int, int],
    ) -> None:
        """`output`: kernel size, stride and crop offset of the last deconvolution."""
        super().__init__()
        self.trunk = trunk
        self.in_channels = in_channels
        self.skip_crops = tuple(skip_crops)
        kernel_size, stride, self.crop = output
        self.score = score_layer(4096, num_classes)
        self.score_skips = nn.ModuleDict(
            {
                f"stride{16 // 2**i}": score_layer(channels, num_classes)
                for i, channels in enumerate(skip_channels)
            }
        )
        self.upscores = nn.ModuleDict(
            {name: deconvolution(num_classes, 4, 2) for name in self.score_skips}
        )
        self.upscore_out = nn.ModuleDict(
            {f"stride{stride}": deconvolution(num_classes, kernel_size, stride)}
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = check_images(x, self.in_channels)
        *skips, x = self.trunk(x)
        x = self.score(x)
        for name, crop in zip(self.score_skips, self.skip_crops, strict=True):
            x = self.upscores[name](x)
            x = x + crop_at(self.score_skips[name](skips.pop()), crop, x.shape[2:])
        for upscore in self.upscore_out.values():
            x = upscore(x)
        return {"out": crop_at(x, self.crop, size)}


class EncoderFCN(nn.Module):
    """The same fusion over an encoder's features of strides 8, 16 and 32, which need no crops.

    Shape:
        x: [N, in_channels, H, W], H and W at least 32
        returns: {"out": [N, num_classes, H, W]}
    """

    absent_in_siblings = FCN.absent_in_siblings

    def __init__(self, encoder: Encoder, num_classes: int, *, stride: int) -> None:
        super().__init__()
        self.encoder = encoder
        channels = dict(zip(encoder.strides, encoder.out_channels, strict=True))
        self.skips = [s for s in (16, 8) if s >= stride]
        self.places = [encoder.strides.index(s) for s in self.skips]
        self.score = score_layer(channels[32], num_classes)
        self.score_skips = nn.ModuleDict(
            {f"stride{s}": score_layer(channels[s], num_classes) for s in self.skips}
        )
        self.upscores = nn.ModuleDict(
            {name: deconvolution(num_classes, 4, 2, padding=1) for name in self.score_skips}
        )
        last = deconvolution(num_classes, 2 * stride, stride, padding=stride // 2)
        self.upscore_out = nn.ModuleDict({f"stride{stride}": last})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = check_images(x, self.encoder.in_channels)
        features = self.encoder(pad_to_multiple(x, 32, minimum=64))
        x = self.score(features[-1])
        for name, place in zip(self.score_skips, self.places, strict=True):
            x = self.upscores[name](x) + self.score_skips[name](features[place])
        for upscore in self.upscore_out.values():
            x = upscore(x)
        return {"out": crop_to(x, size)}


def _build(
    stride: int, num_classes: int, in_channels: int, pretrained: bool, backbone: str, deconv: str
) -> nn.Module:
    check_choice("deconv", deconv, DECONVS)
    skip_crops, crop = CROPS[stride]
    model: nn.Module
    if backbone in ("vgg16", "vgg19"):
        trunk = vgg_trunk(backbone, in_channels, pretrained=pretrained)
        model = FCN(
            trunk,
            (512, 256)[: len(skip_crops)],
            in_channels,
            num_classes,
            skip_crops=skip_crops,
            output=(2 * stride, stride, crop),
        )
    elif backbone == "alexnet":
        if stride != 32 or pretrained:
            raise OptionError(
                "FCN-AlexNet exists as fcn32s without pretrained weights: "
                f"it was asked for at stride {stride} with pretrained={pretrained}"
            )
        output = (63, 32, CAFFENET_CROP)
        trunk = caffenet_trunk(in_channels)
        model = FCN(trunk, (), in_channels, num_classes, skip_crops=(), output=output)
    elif backbone in GOOGLENETS or backbone.startswith(("resnet", "resnext", "wide_resnet")):
        encoder = create_encoder(
            GOOGLENETS.get(backbone, backbone), in_channels=in_channels, pretrained=pretrained
        )
        model = EncoderFCN(encoder, num_classes, stride=stride)
    else:
        raise OptionError(
            f"backbone is {backbone!r}; it can be vgg16, vgg19, alexnet, googlenet, googlenet_bn "
            "or a resnet"
        )
    if deconv == "fixed":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith("upscore"))
    return model


def fcn32s(
    *,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    backbone: str = "vgg16",
    deconv: str = "learned",
) -> nn.Module:
    """FCN-32s: one score map, upsampled 32 times.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the images.
        pretrained: ImageNet weights in the backbone, fc6 and fc7 included.
        backbone: vgg16, vgg19, alexnet (CaffeNet), googlenet (as published, without weights),
            googlenet_bn (torchvision's) or a resnet.
        deconv: "learned" or "fixed" bilinear deconvolutions.

    Raises:
        OptionError: a value that an option does not have.
    """
    return _build(32, num_classes, in_channels, pretrained, backbone, deconv)


def fcn16s(
    *,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    backbone: str = "vgg16",
    deconv: str = "learned",
) -> nn.Module:
    """FCN-16s: FCN-32s plus the scores of pool4; options as `fcn32s`, alexnet excepted."""
    return _build(16, num_classes, in_channels, pretrained, backbone, deconv)


def fcn8s(
    *,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    backbone: str = "vgg16",
    deconv: str = "learned",
) -> nn.Module:
    """FCN-8s: FCN-16s plus the scores of pool3; options as `fcn32s`, alexnet excepted."""
    return _build(8, num_classes, in_channels, pretrained, backbone, deconv)
