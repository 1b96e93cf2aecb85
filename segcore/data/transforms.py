"""Random changes of an image and its label map together, by torchvision.transforms.v2.

Every draw comes from the generator that the caller gives, so a sample seen again under the same
generator has the same pixels. The functional operators dispatch on the type of what they get:
boxes and masks of objects join by being put beside the image in `Augmentation.apply`.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from torch import Tensor

from segcore.data.geometry import Box, cut, displacement, resized, window
from segcore.errors import OptionError, unknown_name

MAX_UINT8 = 255
RGB_CHANNELS = 3
MAP_DIMS = 2  # a mask of three is a stack of objects


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may happen to a training image, in this order; the default is nothing.

    Args:
        ignore_index: label of pixels that come from outside the image.
        mean: of each channel in 0..1, the colour of such pixels.
        scale: (smallest, largest) factor by which the image is enlarged.
        crop: (height, width) of the result, cut at random from the enlarged image; None for the
            image's own. What lies outside is filled.
        class_crops: share of the samples, in 0..1, that the loader draws by class: the crop then
            lies over a pixel of that class.
        translate_px: shift of what is cut by up to this many pixels of the source, each way.
        rotate_deg: rotation about the centre of what is cut by up to this many degrees either way.
        elastic_alpha: strength of the elastic deformation: uniform noise in -1..1 per pixel,
            smoothed by a Gaussian, times this, is the displacement in pixels (Simard et al. 2003).
        elastic_sigma: standard deviation of that Gaussian in pixels; greater is smoother.
        hflip: probability of swapping left and right.
        vflip: probability of swapping top and bottom.
        rot90: probability of a turn by 90 or 270 degrees; only of square results.
        color: strength in 0..1: brightness, contrast and saturation are each multiplied by a
            factor in 1-color..1+color. Hue stays (its conversion costs ten times the others).
            Images that are not RGB change in brightness alone.
    """

    ignore_index: int
    mean: tuple[float, ...]
    crop: tuple[int, int] | None = None
    class_crops: float = 0.0
    hflip: float = 0.0
    vflip: float = 0.0
    rot90: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    translate_px: int = 0
    rotate_deg: float = 0.0
    color: float = 0.0
    elastic_alpha: float = 0.0
    elastic_sigma: float = 10.0

    def __post_init__(self) -> None:
        low, high = self.scale
        crop_sides = self.crop or (1, 1)
        for name, value, allowed, fits in (
            ("crop", self.crop, "two sizes of at least 1", min(crop_sides) >= 1),
            *(
                (name, getattr(self, name), "in 0..1", 0 <= getattr(self, name) <= 1)
                for name in ("class_crops", "hflip", "vflip", "rot90", "color")
            ),
            ("scale", self.scale, "0 < smallest <= largest", 0 < low <= high),
            ("translate_px", self.translate_px, "at least 0", self.translate_px >= 0),
            ("rotate_deg", self.rotate_deg, "in 0..180", 0 <= self.rotate_deg <= 180),
            ("elastic_alpha", self.elastic_alpha, "at least 0", self.elastic_alpha >= 0),
            ("elastic_sigma", self.elastic_sigma, "above 0", self.elastic_sigma > 0),
        ):
            if not fits:
                raise OptionError(f"train.augment.{name} is {value!r}; it must be {allowed}")

    @classmethod
    def from_options(
        cls, options: Mapping[str, Any], *, ignore_index: int, mean: Sequence[float]
    ) -> "Augmentation":
        """Build from plain values, as a params file has them (lists for pairs).

        Raises:
            OptionError: an unknown option, or a value out of range.
        """
        known = {field.name for field in fields(cls)} - {"ignore_index", "mean"}
        for name in options:
            if name not in known:
                raise OptionError(f"train.augment: {unknown_name('option', name, known)}")
        values = dict(options)
        for name in ("crop", "scale"):
            if values.get(name) is not None:
                values[name] = _pair(name, values[name])
        return cls(ignore_index=ignore_index, mean=tuple(mean), **values)

    @property
    def enabled(self) -> bool:
        """Whether anything can change at all."""
        nothing = Augmentation(ignore_index=self.ignore_index, mean=self.mean)
        return replace(self, elastic_sigma=nothing.elastic_sigma) != nothing

    def __call__(
        self,
        image: Tensor,
        mask: Tensor,
        *,
        rng: np.random.Generator,
        over: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Change one sample; what is given stays as it is.

        Args:
            image: uint8 [C, H, W].
            mask: integer [H, W].
            rng: source of every draw.
            over: (y, x) of a pixel of the source over which the crop is to lie.

        Returns:
            image uint8 [C, h, w] and mask [h, w], (h, w) being `crop`, or (H, W) without.
        """
        if not 0 <= self.ignore_index <= MAX_UINT8:
            mask = mask.int()
        if self.moves_whole_pixels:
            return self._moved(image, mask, rng, over)
        from torchvision import tv_tensors

        items = [tv_tensors.Image(image), tv_tensors.Mask(mask)]
        size = (image.shape[-2], image.shape[-1])
        new_image, new_mask = self.apply(items, size, rng, over=over)
        return new_image.as_subclass(Tensor), new_mask.as_subclass(Tensor)

    def apply(
        self,
        items: list[Tensor],
        size: tuple[int, int],
        rng: np.random.Generator,
        *,
        over: tuple[int, int] | None = None,
    ) -> list[Tensor]:
        """Change tv_tensors of one sample alike, each as its type asks for.

        Args:
            items: tv_tensors over the same (height, width), the image first.
            size: that (height, width).
            rng: source of every draw.
            over: (y, x) of a pixel of the source over which the crop is to lie.
        """
        from torchvision.transforms.v2 import functional as ops

        out = self.crop or size
        items = self._cut(items, self._window(size, rng, over), rng)
        if tuple(items[0].shape[-2:]) != tuple(out):
            items = [resized(item, out) for item in items]
        if self.elastic_alpha > 0:
            shift = displacement(out, alpha=self.elastic_alpha, sigma=self.elastic_sigma, rng=rng)
            items = [ops.elastic(item, shift, fill=self._fill(item)) for item in items]
        if self.hflip > 0 and rng.random() < self.hflip:
            items = [ops.horizontal_flip(item) for item in items]
        if self.vflip > 0 and rng.random() < self.vflip:
            items = [ops.vertical_flip(item) for item in items]
        if self.rot90 > 0 and out[0] == out[1] and rng.random() < self.rot90:
            angle = 90 if rng.random() < 0.5 else 270
            items = [ops.rotate(item, angle) for item in items]
        if self.color > 0:
            items = self._recolor(items, rng)
        return items

    @property
    def moves_whole_pixels(self) -> bool:
        """Whether every pixel keeps its value: torchvision, seconds to import, is not needed."""
        return (
            self.scale == (1.0, 1.0)
            and self.rotate_deg == 0
            and self.elastic_alpha == 0
            and self.color == 0
        )

    def _moved(
        self, image: Tensor, mask: Tensor, rng: np.random.Generator, over: tuple[int, int] | None
    ) -> tuple[Tensor, Tensor]:
        """What `apply` does, by the same draws, where pixels only change their places."""
        box = self._window((image.shape[-2], image.shape[-1]), rng, over)
        pair = [cut(image, box, self._colour()), cut(mask, box, self.ignore_index)]
        if self.hflip > 0 and rng.random() < self.hflip:
            pair = [item.flip(-1) for item in pair]
        if self.vflip > 0 and rng.random() < self.vflip:
            pair = [item.flip(-2) for item in pair]
        if self.rot90 > 0 and box[2] == box[3] and rng.random() < self.rot90:
            turns = 1 if rng.random() < 0.5 else 3
            pair = [item.rot90(turns, (-2, -1)) for item in pair]
        return pair[0], pair[1]

    def enlargement(self, rng: np.random.Generator) -> float:
        """By what `apply` enlarges the next sample from this generator, which stays as it is."""
        return self._factor(deepcopy(rng))

    def _factor(self, rng: np.random.Generator) -> float:
        low, high = self.scale
        return float(rng.uniform(low, high)) if low < high else low

    def _window(
        self, size: tuple[int, int], rng: np.random.Generator, over: tuple[int, int] | None
    ) -> Box:
        """What is enlarged, shifted and cropped in one step: (top, left, height, width)."""
        out = self.crop or size
        factor = self._factor(rng)
        height, width = (max(1, round(side / factor)) for side in out)
        corner = []
        for axis, (side, taken) in enumerate(zip(size, (height, width), strict=True)):
            low, high = min(0, side - taken), max(0, side - taken)
            if over is not None:
                low, high = max(low, over[axis] - taken + 1), min(high, over[axis])
            corner.append(int(rng.integers(low, high + 1)))
        if self.translate_px > 0:
            reach = self.translate_px
            corner = [start + int(rng.integers(-reach, reach + 1)) for start in corner]
        return corner[0], corner[1], height, width

    def _cut(self, items: list[Tensor], box: Box, rng: np.random.Generator) -> list[Tensor]:
        """Take a window of the source, turned about its centre; what is outside is filled."""
        from torchvision.transforms import InterpolationMode  # 0.26 takes no name for it
        from torchvision.transforms.v2 import functional as ops

        if self.rotate_deg == 0:
            return [window(item, box, self._fill(item)) for item in items]
        angle = rng.uniform(-self.rotate_deg, self.rotate_deg)
        top, left, height, width = box
        margin = math.ceil((math.hypot(height, width) - min(height, width)) / 2)
        wide = (top - margin, left - margin, height + 2 * margin, width + 2 * margin)
        turned = []
        for item in items:
            fill = self._fill(item)
            item = window(item, wide, fill)
            item = ops.affine(
                item, angle, [0, 0], 1.0, [0.0, 0.0], InterpolationMode.BILINEAR, fill=fill
            )
            turned.append(ops.crop(item, margin, margin, height, width))
        return turned

    def _recolor(self, items: list[Tensor], rng: np.random.Generator) -> list[Tensor]:
        from torchvision import tv_tensors
        from torchvision.transforms.v2 import functional as ops

        low, high = 1 - self.color, 1 + self.color
        brightness, contrast, saturation = map(float, rng.uniform(low, high, 3))

        def recolor(item: Tensor) -> Tensor:
            if not isinstance(item, tv_tensors.Image):
                return item
            if len(self.mean) == RGB_CHANNELS:
                item = ops.adjust_contrast(ops.adjust_brightness(item, brightness), contrast)
                item = ops.adjust_saturation(item, saturation)
            else:
                planes = ops.adjust_brightness(item.unsqueeze(1), brightness)
                item = tv_tensors.Image(planes.squeeze(1))
            return item

        return [recolor(item) for item in items]

    def _fill(self, item: Tensor) -> int | list[float]:
        """Mean colour for images, `ignore_index` for maps of classes, nothing for objects."""
        from torchvision import tv_tensors

        if isinstance(item, tv_tensors.Image):
            return self._colour()
        return self.ignore_index if item.ndim == MAP_DIMS else 0

    def _colour(self) -> list[float]:
        """The mean colour as pixels have it."""
        return [float(round(value * MAX_UINT8)) for value in self.mean]


def _pair(name: str, value: Any) -> tuple[Any, Any]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise OptionError(f"train.augment.{name} is {value!r}; it takes two numbers")
    return value[0], value[1]
