"""How each published system was trained: one card a name, as far as our loop has the means."""

import hashlib
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from segcore.models import MODELS, ModelCard, list_models, model_card

Shares = tuple[float, float]
FIGURES = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy", "class_accuracy": "class accuracy"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One system's training, as published.

    Args:
        source: where it is written: the paper's section, or the released file.
        optimizer: of `segcore.fit`.
        lr: published learning rate.
        scratch_lr: in its place where the published one presumes ImageNet weights and there are
            none; None: the published one.
        momentum: of sgd and rmsprop.
        weight_decay: published.
        schedule: of `segcore.fit`, the nearest to the published one.
        batch: published images of a step.
        crop: (height, width) as shares of the published training picture; None: all of it.
        augment: further options of `segcore.data.transforms.Augmentation`.
        loss: name of the loss.
        loss_options: of it.
        class_weights: none, median_frequency or inverse_log.
        imagenet: what the publication starts from; "" for random weights.
        reported: figures that `ModelCard.published` has not, by the same keys.
        caveat: what else is not as published, and what the published figure is of.
    """

    source: str
    optimizer: str
    lr: float
    scratch_lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "poly"
    batch: int = 4
    crop: Shares | None = None
    augment: Mapping[str, Any] = field(default_factory=dict)
    loss: str = "cross_entropy"
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    class_weights: str = "none"
    imagenet: str = ""
    reported: Mapping[str, float] = field(default_factory=dict)
    caveat: str = ""

    def digest(self) -> str:
        """Of everything that changes what is trained: a row of another digest is another row."""
        trained = replace(self, source="", caveat="", reported={})
        return hashlib.sha256(repr(trained).encode()).hexdigest()[:8]

    def rate(self, pretrained: bool) -> float:
        """The learning rate for these weights."""
        return self.lr if pretrained or self.scratch_lr is None else self.scratch_lr

    def augmentation(self, size: tuple[int, int]) -> dict[str, Any]:
        """Options of the loader for pictures of (height, width)."""
        options = dict(self.augment)
        if self.crop is not None:
            options["crop"] = [
                round(side * share) for side, share in zip(size, self.crop, strict=True)
            ]
        return options


def recipe_of(name: str) -> Recipe:
    """The card of an architecture; a plain one where nobody has written it."""
    return RECIPES.get(name, PLAIN)


def flat_names() -> list[str]:
    """Every architecture of 2-D pictures and class maps."""
    return [name for name in list_models("semantic") if model_card(name).input_dims == 2]


def begins_pretrained(name: str, asked: bool) -> bool:
    """Whether a system begins from ImageNet weights: it was published so, and ours can."""
    module, _, builder = MODELS[name].partition(":")
    takes = inspect.signature(getattr(importlib.import_module(module), builder)).parameters
    return asked and bool(recipe_of(name).imagenet) and "pretrained" in takes


def published(card: ModelCard, recipe: Recipe, dataset: str) -> dict[str, float]:
    """Published figures on a dataset, by key of `FIGURES`, in percent."""
    every = {**card.published, **recipe.reported}
    found = {name: every.get(f"{dataset}_{name}") for name in FIGURES}
    return {name: value for name, value in found.items() if value is not None}


VGG = "VGG16 of ImageNet"
MIRROR = {"hflip": 0.5}
MEDIAN = {"class_weights": "median_frequency", "loss_options": {"normalize": "pixels"}}

_FCN = Recipe(
    source="Long et al. 2015, sec. 4.3",
    optimizer="sgd",
    lr=1e-4,
    scratch_lr=0.01,
    weight_decay=5e-4,
    schedule="constant",
    batch=20,
    imagenet=VGG,
)
_STAGED = "published: begun from the coarser net's weights"
_DENSE = Recipe(
    source="Jegou et al. 2017, sec. 4.1",
    optimizer="rmsprop",
    lr=1e-3,
    momentum=0.0,
    weight_decay=1e-4,
    batch=3,
    crop=(224 / 360, 224 / 480),
    augment=MIRROR,
    caveat="published: x0.995 an epoch (here poly), then whole pictures at 1e-4, batch statistics "
    "also in the test",
)
_COMPACT = Recipe(
    source="none that states it: Adam at its usual rate",
    optimizer="adam",
    lr=1e-3,
    augment=MIRROR,
    caveat="published: 12 classes",
)

PLAIN = Recipe(
    source="no card: Adam at its usual rate",
    optimizer="adam",
    lr=1e-3,
    augment=MIRROR,
)
RECIPES: dict[str, Recipe] = {
    "deconvnet": Recipe(
        source="Noh et al. 2015, sec. 4.2, and the released solvers",
        optimizer="sgd",
        lr=0.01,
        weight_decay=5e-4,
        schedule="step",
        batch=64,
        crop=(224 / 250, 224 / 250),
        augment=MIRROR,
        imagenet=VGG,
        reported={"camvid_miou": 59.77, "camvid_pixel_accuracy": 89.58},
        caveat="published: two stages of object crops; the figure is SegNet's authors', of 3.5K "
        "pictures",
    ),
    "deeplab_largefov": Recipe(
        source="Chen et al. 2015, sec. 4",
        optimizer="sgd",
        lr=1e-3,
        scratch_lr=0.01,
        weight_decay=5e-4,
        schedule="step",
        batch=20,
        augment=MIRROR,
        imagenet=VGG,
        caveat="published: the classifier at ten times the rate",
    ),
    "dilated": Recipe(
        source="Yu & Koltun 2016, sec. 4",
        optimizer="sgd",
        lr=1e-3,
        weight_decay=5e-4,
        schedule="constant",
        batch=14,
        imagenet=VGG,
        caveat="published: the context module after the front end, not with it",
    ),
    "enet": Recipe(
        source="Paszke et al. 2016, sec. 5, and opts.lua",
        optimizer="adam",
        lr=5e-4,
        weight_decay=2e-4,
        schedule="step",
        batch=10,
        class_weights="inverse_log",
        caveat="published: first the encoder on labels at an eighth, then all",
    ),
    "fc_densenet56": replace(_DENSE, reported={"camvid_pixel_accuracy": 88.9}),
    "fc_densenet67": replace(_DENSE, reported={"camvid_pixel_accuracy": 90.8}),
    "fc_densenet103": replace(_DENSE, reported={"camvid_pixel_accuracy": 91.5}),
    "fcn32s": _FCN,
    "fcn16s": replace(_FCN, caveat=_STAGED),
    "fcn8s": replace(
        _FCN,
        reported={"camvid_miou": 57.0, "camvid_pixel_accuracy": 88.0},
        caveat=f"{_STAGED}; the figure is that of Jegou et al. 2017",
    ),
    "fcn_small": _COMPACT,
    "gfrnet": Recipe(
        source="Islam et al. 2017, released solver",
        optimizer="sgd",
        lr=1e-3,
        weight_decay=5e-4,
        schedule="step",
        batch=6,
        class_weights=MEDIAN["class_weights"],
        loss_options=MEDIAN["loss_options"],
        imagenet=VGG,
        caveat="published: SegNet's list of class weights",
    ),
    "linknet": Recipe(
        source="Chaurasia & Culurciello 2017, sec. IV, and opts.lua",
        optimizer="rmsprop",
        lr=5e-4,
        schedule="step",
        batch=8,
        class_weights="inverse_log",
        imagenet="ResNet-18 of ImageNet",
        caveat="published: 768 x 576",
    ),
    "pspnet": Recipe(
        source="Zhao et al. 2017, sec. 5.1",
        optimizer="sgd",
        lr=0.01,
        weight_decay=1e-4,
        batch=16,
        augment={**MIRROR, "scale": [0.5, 2.0], "rotate_deg": 10.0},
        crop=(1.0, 1.0),
        imagenet="ResNet-50 of ImageNet",
        caveat="published: new layers at ten times the rate, blur",
    ),
    "refinenet": Recipe(
        source="Lin et al. 2017, sec. 4, and the released demo",
        optimizer="sgd",
        lr=5e-4,
        weight_decay=5e-4,
        schedule="step",
        batch=4,
        crop=(1.0, 1.0),
        augment={**MIRROR, "scale": [0.7, 1.3]},
        imagenet="ResNet-101 of ImageNet",
        caveat="published: batch 1, batch norm frozen, the backbone at a tenth of the rate",
    ),
    "residual_unet": Recipe(
        source="Drozdzal et al. 2016, sec. 3",
        optimizer="rmsprop",
        lr=1e-3,
        weight_decay=5e-4,
        augment=MIRROR,
        caveat="made for microscopy; published: elastic deformation",
    ),
    "segnet": Recipe(
        source="Badrinarayanan et al. 2017, sec. 3.2, and the released solver",
        optimizer="sgd",
        lr=1e-3,
        scratch_lr=0.1,
        weight_decay=5e-4,
        schedule="constant",
        class_weights=MEDIAN["class_weights"],
        loss_options=MEDIAN["loss_options"],
        imagenet=VGG,
        caveat="published figures: 3.5K pictures; of these 367, others report mIoU 46.4 to 55.6",
    ),
    "segnet_basic": Recipe(
        source="Badrinarayanan et al. 2017, sec. 3.2, and the released solver",
        optimizer="sgd",
        lr=0.1,
        weight_decay=5e-4,
        schedule="constant",
        class_weights=MEDIAN["class_weights"],
        loss_options=MEDIAN["loss_options"],
    ),
    "sliding_window": Recipe(
        source="Ciresan et al. 2012, sec. 2: pixels drawn evenly from the classes",
        optimizer="adam",
        lr=1e-3,
        augment=MIRROR,
        class_weights="median_frequency",
        caveat="made for membranes; class weights for even drawing; the optimiser is ours",
    ),
    "unet": Recipe(
        source="Ronneberger et al. 2015, sec. 3",
        optimizer="sgd",
        lr=1e-3,
        momentum=0.99,
        schedule="constant",
        batch=1,
        augment=MIRROR,
        caveat="made for microscopy; published: elastic deformation, border weights, no rate given",
    ),
    "unet_small": _COMPACT,
}
