"""Images without masks as training sees them: image-level classes, and a second, harsher view."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segcore.data.shard_format import Row
from segcore.data.targets import Label, Size, Targets
from segcore.data.transforms import Augmentation


@dataclass(frozen=True, kw_only=True)
class StrongView:
    """Colours as no mask depends on them: the same picture, harder to tell.

    Reference: FixMatch, Sohn et al. 2020, arXiv:2001.07685 (weak and strong views); the operations
    are those of PseudoSeg, Zou et al. 2021, arXiv:2010.09713 (jitter, grey, blur), so that every
    pixel stays where it is.

    Args:
        jitter: brightness, contrast and saturation are each multiplied by 1 - jitter..1 + jitter.
        jitter_odds: probability of it.
        grey_odds: probability of losing all colour.
        blur_odds: probability of a Gaussian blur.
        blur_sigma: its standard deviation in pixels, smallest and largest.
    """

    jitter: float = 0.5
    jitter_odds: float = 0.8
    grey_odds: float = 0.2
    blur_odds: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """Change one image; what is given stays as it is.

        Args:
            image: uint8 [C, H, W].
            rng: source of every draw.
        """
        from torchvision.transforms.v2 import functional as ops

        colour = image.shape[0] == 3
        factors = rng.uniform(1 - self.jitter, 1 + self.jitter, 3)
        odds = rng.random(3)
        sigma = float(rng.uniform(*self.blur_sigma))
        image = image if colour else image[:, None]
        if odds[0] < self.jitter_odds:
            image = ops.adjust_brightness(image, float(factors[0]))
            image = ops.adjust_contrast(image, float(factors[1]))
            image = ops.adjust_saturation(image, float(factors[2])) if colour else image
        if odds[1] < self.grey_odds and colour:
            image = ops.rgb_to_grayscale(image, num_output_channels=3)
        if odds[2] < self.blur_odds:
            side = 2 * round(2 * sigma) + 1
            image = ops.gaussian_blur(image, [side, side], [sigma, sigma])
        return image if colour else image[:, 0]


class ImageLabels(Targets):
    """No mask: label int64 [n] of classes in the image, target float [K] of 0 and 1.

    A batch has "image" (uint8 [N, C, H, W]), "target" (float [N, K]) and, with a `strong` view,
    "strong" (as "image"). The classes are those of the whole image, also where it is cropped.

    Args:
        num_classes: K.
        strong: makes the second view of each augmented image; None for none.
    """

    what = "image"

    def __init__(self, num_classes: int, *, strong: StrongView | None = None) -> None:
        self.num_classes = num_classes
        self.strong = strong

    def is_labelled(self, row: Row) -> bool:
        """Every row will do: one of unknown classes has none."""
        return True

    def label(self, row: Row) -> Label:
        """The classes, without ids that are none."""
        known = [index for index in row.labels or () if 0 <= index < self.num_classes]
        return np.array(known, dtype=np.int64)

    def items(self, label: Label, size: Size) -> list[Tensor]:
        """Nothing that moves with the image."""
        return []

    def target(self, items: list[Tensor], label: Label, size: Size) -> Any:
        """1 for each class in the image."""
        present = torch.zeros(self.num_classes)
        present[torch.from_numpy(label)] = 1.0
        return present

    def augment(
        self,
        augmentation: Augmentation,
        image: Tensor,
        label: Label,
        *,
        rng: np.random.Generator,
        over: tuple[int, int] | None,
    ) -> tuple[Tensor, Any]:
        """As every target; with a strong view, the target is the pair of it and the classes."""
        weak, present = super().augment(augmentation, image, label, rng=rng, over=over)
        return weak, present if self.strong is None else (self.strong(weak, rng), present)

    def collate(self, images: Sequence[Tensor], targets: Sequence[Any]) -> dict[str, Any]:
        """All of one size."""
        if self.strong is None:
            return {"image": torch.stack(list(images)), "target": torch.stack(list(targets))}
        strong, present = zip(*targets, strict=True)
        return {
            "image": torch.stack(list(images)),
            "strong": torch.stack(strong),
            "target": torch.stack(present),
        }
