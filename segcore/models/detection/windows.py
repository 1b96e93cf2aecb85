"""Square windows of an image: what a network that looks at one window at a time learns from.

A window is canonical for an object when their centres agree and the object's longer side is a
fixed share of the window's.

Reference: Pinheiro, Collobert & Dollar 2015 (DeepMask), arXiv:1506.06204, section 3.2.
"""

import math

import torch
from torch import Tensor

from segcore.models.detection.boxes import clip_boxes
from segcore.models.detection.masks import paste_masks
from segcore.models.detection.position_sensitive import tight_boxes

# As shares of a window's side (the paper's 16 and 32 of 224 px), and in octaves.
JITTER, JITTER_OCTAVES = 16 / 224, 0.25
AWAY, AWAY_OCTAVES = 32 / 224, 1.0
DRAWS = 16  # negatives are drawn this many times over, before the positives among them go


def canonical_windows(boxes: Tensor, share: float) -> Tensor:
    """(centre x, centre y, side) of the window in which each object is centred.

    Args:
        boxes: [n, 4] xyxy.
        share: of the window's side that the object's longer side takes.

    Shape:
        returns: [n, 3]
    """
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    side = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) / share
    return torch.cat([centre, side], 1)


def positive_windows(boxes: Tensor, count: int, share: float) -> tuple[Tensor, Tensor]:
    """Canonical windows of objects drawn at random, jittered in place and scale.

    Returns:
        boxes [count, 4] of the windows and the index of each one's object; none without objects.
    """
    if len(boxes) == 0:
        return boxes.new_zeros(0, 4), torch.zeros(0, dtype=torch.int64, device=boxes.device)
    owner = torch.randint(len(boxes), (count,), device=boxes.device)
    windows = canonical_windows(boxes, share)[owner]
    centre, side = windows[:, :2], windows[:, 2:]
    noise = 2 * torch.rand(count, 3, device=boxes.device) - 1
    side = side * 2 ** (JITTER_OCTAVES * noise[:, 2:])
    return _to_boxes(centre + JITTER * side * noise[:, :2], side), owner


def negative_windows(
    boxes: Tensor, size: tuple[int, int], count: int, share: float, *, sides: tuple[float, float]
) -> Tensor:
    """Windows that are canonical for no object: away in place or in scale from every one.

    Half of them lie anywhere in the image; half are an object's own window, moved or rescaled,
    which is what dense evaluation confuses with it.

    Args:
        boxes: [n, 4] of all objects.
        size: (H, W) of the image.
        count: at most this many; fewer where objects leave no room.
        share: as `canonical_windows`.
        sides: shortest and longest side of a window, drawn evenly in octaves.

    Shape:
        returns: [at most count, 4]
    """
    draws = DRAWS * count
    low, high = (math.log2(side) for side in sides)
    random = torch.rand(draws, 3, device=boxes.device)
    centre = random[:, :2] * boxes.new_tensor([size[1], size[0]])
    side = 2 ** (low + (high - low) * random[:, 2:])
    windows = canonical_windows(boxes, share)
    if len(boxes):
        near = windows[torch.randint(len(boxes), (draws // 2,), device=boxes.device)]
        noise = 2 * torch.rand(draws // 2, 3, device=boxes.device) - 1
        centre[::2] = near[:, :2] + 3 * AWAY * near[:, 2:] * noise[:, :2]
        side[::2] = near[:, 2:] * 2 ** (2 * AWAY_OCTAVES * noise[:, 2:])
    distance = (centre[:, None] - windows[:, :2]).abs().amax(2) / side
    octaves = (side / windows[:, 2]).log2().abs()
    away = ((distance >= AWAY) | (octaves >= AWAY_OCTAVES)).all(1)
    chosen = away.nonzero()[:count, 0]
    return _to_boxes(centre[chosen], side[chosen])


def crop_windows(
    image: Tensor, windows: Tensor, size: int, *, margin: float = 0.0, each: bool = False
) -> Tensor:
    """Cut windows out at one size; zeros beyond the image, areas averaged where it shrinks.

    Args:
        image: one for all windows, or [R, H, W] with one map for each where `each` is set.
        windows: boxes in pixels.
        size: side of the window in the result.
        margin: context on every side, as a share of the window's side, which the result holds too.
        each: whether every window has its own map.

    Shape:
        image: [C, H, W]
        windows: [R, 4]
        returns: [R, C, size * (1 + 2 margin), ...], or [R, size, size] where `each` is set
    """
    from torchvision.ops import roi_align

    side = windows[:, 2:] - windows[:, :2]
    boxes = torch.cat([windows[:, :2] - margin * side, windows[:, 2:] + margin * side], 1)
    index = torch.arange(len(windows), device=windows.device) if each else windows.new_zeros(1)
    rois = torch.cat([index.expand(len(windows))[:, None].to(boxes), boxes], 1)
    maps = (image[:, None] if each else image[None]).float()
    cropped: Tensor = roi_align(maps, rois, round(size * (1 + 2 * margin)), aligned=True)
    return cropped[:, 0] if each else cropped


def keep_proposals(
    masks: Tensor,
    windows: Tensor,
    scores: Tensor,
    size: tuple[int, int],
    *,
    nms_thresh: float,
    most: int,
) -> dict[str, Tensor]:
    """Objects of one image, of no class: NMS on the boxes of the masks, the best of them pasted.

    Args:
        masks: probabilities over the windows.
        windows: boxes in pixels, which may reach beyond the image.
        scores: descending.
        size: (H, W) of the image.
        nms_thresh: overlap from which the weaker of two is dropped.
        most: so many remain at most.

    Shape:
        masks: [R, m, m]
        windows: [R, 4]
        scores: [R]
        returns: "boxes" [n, 4], "labels" [n] (1), "scores" [n], "masks" [n, 1, H, W]
    """
    from torchvision.ops import nms

    boxes = clip_boxes(tight_boxes(masks > 0.5, windows), size)
    kept = nms(boxes, scores, nms_thresh)[:most]
    return {
        "boxes": boxes[kept],
        "labels": torch.ones_like(kept),
        "scores": scores[kept],
        "masks": paste_masks(masks[kept], windows[kept], size)[:, None],
    }


def _to_boxes(centre: Tensor, side: Tensor) -> Tensor:
    return torch.cat([centre - side / 2, centre + side / 2], 1)
