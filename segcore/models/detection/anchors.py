"""Anchors: boxes of fixed sizes and shapes at every position of a feature map.

Reference: Ren et al. 2015, arXiv:1506.01497.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from segcore.errors import OptionError

ASPECT_RATIOS = (0.5, 1.0, 2.0)


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float] = ASPECT_RATIOS) -> Tensor:
    """Anchors around the origin, of area size^2 and height / width = ratio, sides rounded to even.

    Returns:
        [len(ratios) * len(sizes), 4]; the sizes of one ratio lie together.
    """
    heights = torch.tensor(ratios, dtype=torch.float32).sqrt()
    scales = torch.tensor(sizes, dtype=torch.float32)
    h = (heights[:, None] * scales).flatten()
    w = ((1 / heights)[:, None] * scales).flatten()
    return (torch.stack([-w, -h, w, h], dim=1) / 2).round()


class Anchors:
    """Anchors of every level of a pyramid.

    Args:
        sizes: per level, the side lengths in pixels of its square anchors.
        ratios: heights over widths, the same at every level.

    Raises:
        OptionError: no level, a level of no or non-positive sizes, or unlike numbers of sizes.
    """

    def __init__(
        self, sizes: Sequence[Sequence[float]], ratios: Sequence[float] = ASPECT_RATIOS
    ) -> None:
        wrong = [level for level in sizes if not level or min(level) <= 0]
        if not sizes or wrong or len({len(level) for level in sizes}) > 1:
            raise OptionError(
                f"anchor_sizes is {sizes!r}: give each level the same number of positive sizes, "
                "such as ((8,), (16,), (32,), (64,), (128,))"
            )
        self.sizes = tuple(tuple(level) for level in sizes)
        self.per_cell = len(self.sizes[0]) * len(ratios)
        self.ratios = tuple(ratios)

    def __call__(self, features: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Anchors [H * W * per_cell, 4] of each feature map [N, C, H, W] of an image of `size`.

        The stride is size // (H, W), as torchvision has it: also where a level's size was rounded.

        Raises:
            OptionError: there are more or fewer levels than `sizes`.
        """
        if len(features) != len(self.sizes):
            raise OptionError(
                f"anchor_sizes has {len(self.sizes)} levels, the network has {len(features)}: "
                "give one tuple of sizes for each"
            )
        return [self._level(s, f, size) for s, f in zip(self.sizes, features, strict=True)]

    def _level(self, sizes: Sequence[float], feature: Tensor, size: tuple[int, int]) -> Tensor:
        height, width = feature.shape[2:]
        device = feature.device
        cells = cell_anchors(sizes, self.ratios).to(device)
        y = torch.arange(height, device=device, dtype=torch.float32) * (size[0] // height)
        x = torch.arange(width, device=device, dtype=torch.float32) * (size[1] // width)
        at = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flip(-1).reshape(-1, 1, 2)
        return (torch.cat([at, at], dim=-1) + cells).reshape(-1, 4)
