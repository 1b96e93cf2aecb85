"""Maps that a network of pixels learns objects from: interiors, borders, classes, crowds.

Reference: Ronneberger, Fischer & Brox 2015, arXiv:1505.04597, section 3 (borders that are learned).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segcore.models.detection.images import Target

BACKGROUND, INTERIOR, BORDER = range(3)
IGNORE = 255
# Of an object's depth that its border takes at most.
RIM_SHARE = 0.4


class PixelTargets(NamedTuple):
    """What one image teaches each pixel.

    Args:
        kinds: int64 [H, W] of BACKGROUND, INTERIOR, BORDER and IGNORE.
        things: int64 [H, W], label - 1 within objects, else IGNORE.
        ids: int32 [H, W], 0 for background.
    """

    kinds: NDArray[np.int64]
    things: NDArray[np.int64]
    ids: NDArray[np.int32]


def pixel_targets(target: Target, size: Sequence[int], *, border: float) -> PixelTargets:
    """Maps of one image's objects, padded behind to `size`.

    The border is at most `border` px wide and at most two fifths of an object's depth, so that
    even the smallest keeps an interior. Where objects overlap the smaller is on top. Pixels behind
    the image and of crowds are ignored.
    """
    from scipy.ndimage import distance_transform_edt, maximum

    masks, crowd = target["masks"].cpu().numpy() > 0, target["semantic"].cpu().numpy() > 0
    order = np.argsort(-masks.sum((1, 2)), kind="stable")
    ranks = np.arange(1, len(order) + 1, dtype=np.int32)
    ids = (masks[order] * ranks[:, None, None]).max(0, initial=0).astype(np.int32)
    edge = np.zeros(ids.shape, dtype=bool)
    for axis in (0, 1):
        differs = np.diff(ids, axis=axis) != 0
        edge |= np.insert(differs, 0, False, axis) | np.insert(
            differs, ids.shape[axis] - 1, False, axis
        )
    depth = distance_transform_edt(~edge) + 1 if edge.any() else np.full(ids.shape, np.inf)
    deepest = np.zeros(len(order) + 1)
    if len(order):
        deepest[1:] = maximum(depth, ids, ranks)
    rim = depth <= np.minimum(border, RIM_SHARE * deepest[ids])
    kinds = np.where(ids > 0, np.where(rim, BORDER, INTERIOR), BACKGROUND)
    kinds[crowd & (ids == 0)] = IGNORE
    things = np.append(IGNORE, target["labels"].cpu().numpy()[order] - 1)[ids]
    behind = [(0, full - own) for full, own in zip(size, ids.shape, strict=True)]
    return PixelTargets(
        np.pad(kinds, behind, constant_values=IGNORE),
        np.pad(things, behind, constant_values=IGNORE),
        np.pad(ids, behind),
    )


def crowd_map(target: Target) -> Tensor:
    """Pixels of crowd objects, uint8 [H, W]."""
    masks = target["masks"]
    crowds = masks[target["iscrowd"] > 0] if "iscrowd" in target else masks[:0]
    return (crowds > 0).any(0).to(torch.uint8)
