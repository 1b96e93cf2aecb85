"""Lists of images of unlike sizes as one batch, and their targets; results back in the image."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segcore.errors import OptionError, ShapeError

MULTIPLE = 32  # as torchvision: the coarsest stride that is not rounded
Target = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Images of one size, padded right and below.

    Args:
        tensor: float [N, C, H, W], H and W multiples of 32.
        sizes: (height, width) of each image within it.
        originals: (height, width) of each image as it was given.
    """

    tensor: Tensor
    sizes: list[tuple[int, int]]
    originals: list[tuple[int, int]]

    @property
    def padded(self) -> tuple[int, int]:
        """(height, width) of the batch."""
        return self.tensor.shape[2], self.tensor.shape[3]


@dataclass(frozen=True)
class Preparation:
    """What a model does to images before its first layer; by default it only pads.

    Args:
        in_channels: channels of the images.
        min_size: resize so that the shorter side is this long; of several, one is drawn in
            training and the last is used in eval. None keeps the size.
        max_size: unless the longer side would be longer than this. None sets no limit.
        image_mean, image_std: subtracted and divided by, one value a channel. None does nothing.
        enlarge: factor of the image's sides where min_size is None, for objects that are small
            against the stride: the same for crops and for whole images, which min_size is not.
    """

    in_channels: int = 3
    min_size: int | Sequence[int] | None = None
    max_size: int | None = None
    image_mean: Sequence[float] | None = None
    image_std: Sequence[float] | None = None
    enlarge: float = 1.0

    def __post_init__(self) -> None:
        if self.enlarge <= 0 or (self.enlarge != 1 and self.min_size is not None):
            raise OptionError(
                f"enlarge is {self.enlarge} and min_size {self.min_size}: give a factor above 0, "
                "and one of the two"
            )
        for name, values in (("image_mean", self.image_mean), ("image_std", self.image_std)):
            if values is not None and len(values) != self.in_channels:
                raise OptionError(
                    f"{name} has {len(values)} values for {self.in_channels} channels: "
                    "give one a channel"
                )

    def __call__(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None, *, training: bool
    ) -> tuple[ImageBatch, list[dict[str, Tensor]]]:
        """The batch, and its targets without crowds, at the batch's scale.

        Args:
            images: float [C, H, W] each.
            targets: one an image, or None in eval.
            training: draw among several values of min_size.

        Raises:
            ShapeError: an image has other dimensions or channels, or is not floating point;
                targets are missing or do not fit.
        """
        _check_images(images, self.in_channels)
        if training or targets is not None:
            targets = _check_targets(images, targets)
        originals = [(image.shape[1], image.shape[2]) for image in images]
        resized = [self._resize(self._normalise(image), training) for image in images]
        sizes = [(image.shape[1], image.shape[2]) for image in resized]
        pairs = zip(targets or [], originals, sizes, strict=targets is not None)
        prepared = [_fit_target(target, before, after) for target, before, after in pairs]
        return ImageBatch(_stack(resized), sizes, originals), prepared

    def _normalise(self, image: Tensor) -> Tensor:
        if self.image_mean is not None:
            image = image - image.new_tensor(self.image_mean)[:, None, None]
        if self.image_std is not None:
            image = image / image.new_tensor(self.image_std)[:, None, None]
        return image

    def _resize(self, image: Tensor, training: bool) -> Tensor:
        if self.min_size is None and self.max_size is None and self.enlarge == 1:
            return image
        sides = image.shape[1:]
        wanted = [self.min_size] if isinstance(self.min_size, int) else self.min_size
        factors = [self.enlarge] if wanted is None else [side / min(sides) for side in wanted]
        factor = factors[int(torch.randint(len(factors), ())) if training else -1]
        if self.max_size is not None:
            factor = min(factor, self.max_size / max(sides))
        return F.interpolate(
            image[None], scale_factor=factor, mode="bilinear", recompute_scale_factor=True
        )[0]


def resize_boxes(boxes: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Boxes [..., 4] of an image of size `before` in one of size `after`."""
    if before == after:
        return boxes
    y, x = after[0] / before[0], after[1] / before[1]
    return boxes * boxes.new_tensor([x, y, x, y])


def _fit_target(
    target: Target, before: tuple[int, int], after: tuple[int, int]
) -> dict[str, Tensor]:
    """A target without crowds, resized."""
    fitted = dict(target)
    if "iscrowd" in target and bool(target["iscrowd"].any()):
        kept = target["iscrowd"] == 0
        fitted |= {key: target[key][kept] for key in ("boxes", "labels", "masks")}
    fitted["boxes"] = resize_boxes(fitted["boxes"].float(), before, after)
    if before != after:
        for key in {"masks", "semantic"} & set(fitted):
            fitted[key] = _nearest(fitted[key], after)
    return fitted


def _nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest resizing of integer maps [..., H, W]."""
    rows, columns = (
        torch.arange(new, device=maps.device) * old // new
        for old, new in zip(maps.shape[-2:], size, strict=True)
    )
    return maps[..., rows, :][..., columns]


def _stack(images: Sequence[Tensor]) -> Tensor:
    height, width = (
        math.ceil(max(image.shape[axis] for image in images) / MULTIPLE) * MULTIPLE
        for axis in (1, 2)
    )
    batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return batch


def _check_images(images: Sequence[Tensor], in_channels: int) -> None:
    for index, image in enumerate(images):
        if image.dim() != 3 or not image.is_floating_point():
            raise ShapeError(
                f"image {index} is {image.dtype} of shape {tuple(image.shape)}: "
                "give a list of float [C, H, W]"
            )
        if image.shape[0] != in_channels:
            raise ShapeError(
                f"image {index} has {image.shape[0]} channels, the model takes {in_channels}: "
                f"build it with in_channels={image.shape[0]}"
            )


def _check_targets(images: Sequence[Tensor], targets: Sequence[Target] | None) -> Sequence[Target]:
    if targets is None or len(targets) != len(images):
        given = "none" if targets is None else len(targets)
        raise ShapeError(f"{len(images)} images with {given} targets: give one dict an image")
    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        boxes, count = target["boxes"], len(target["labels"])
        if tuple(boxes.shape) != (count, 4):
            raise ShapeError(
                f"target {index}: boxes are {tuple(boxes.shape)} for {count} labels: give [n, 4]"
            )
        if not bool((boxes[:, 2:] > boxes[:, :2]).all()):
            worst = boxes[(boxes[:, 2:] <= boxes[:, :2]).any(dim=1)][0].tolist()
            raise ShapeError(
                f"target {index}: box {worst} has no area: a pixel at (x, y) is "
                "[x, y, x + 1, y + 1]; leave out objects without pixels"
            )
        if tuple(target["masks"].shape) != (count, *image.shape[1:]):
            raise ShapeError(
                f"target {index}: masks are {tuple(target['masks'].shape)}, expected "
                f"{(count, *image.shape[1:])}: give [n, H, W] at the image's size"
            )
    return targets
