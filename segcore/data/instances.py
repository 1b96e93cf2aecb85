"""Targets of instance and panoptic models from the rows of shards, and after augmentation.

A target is a dict of tensors: `boxes` float32 [n, 4] of (x0, y0, x1, y1) in pixels, `labels` int64
[n], `masks` uint8 [n, H, W] of 0 and 1, `iscrowd` uint8 [n], `area` float32 [n] in pixels. Panoptic
ones also have `semantic` int64 [H, W].
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segcore.data import objects
from segcore.data.sample import Instance
from segcore.errors import ShapeError
from segcore.inference import rle

Target = dict[str, Tensor]

OBJECT_KEYS = ("boxes", "labels", "masks", "iscrowd", "area")
VOID = 255


def thing_labels(things: Sequence[bool]) -> dict[int, int]:
    """Class index of each thing -> its label: 1 + its rank among the things."""
    return {c: rank for rank, c in enumerate(np.flatnonzero(things).tolist(), start=1)}


def stuff_labels(things: Sequence[bool]) -> dict[int, int]:
    """Class index -> label in `semantic`: the rank among the stuff, for all things their number."""
    stuff = np.flatnonzero(~np.asarray(things, dtype=bool)).tolist()
    ranks = {c: rank for rank, c in enumerate(stuff)}
    return {c: ranks.get(c, len(stuff)) for c in range(len(things))}


def instance_target(
    instances: Sequence[Instance], size: tuple[int, int], label_of_category: Mapping[int, int]
) -> Target:
    """The target of one image.

    Args:
        instances: of a row; those of classes without a label, and empty ones, are left out.
        size: (height, width) of the stored image.
        label_of_category: class index -> label, see `thing_labels`.

    Raises:
        DataError: run lengths are damaged or of another size.
    """
    kept = [instance for instance in instances if instance.category in label_of_category]
    owner, row, column = rle.decode_pixels([instance.counts for instance in kept], *size)
    areas = np.bincount(owner, minlength=len(kept))
    seen = np.flatnonzero(areas)
    kept, areas = [kept[i] for i in seen], areas[seen]
    if seen.size < owner.max(initial=-1) + 1:
        owner = np.searchsorted(seen, owner)
    masks = np.zeros((len(kept), *size), dtype=np.uint8)
    masks[owner, row, column] = 1
    starts = np.cumsum(areas) - areas
    boxes = np.zeros((len(kept), 4), dtype=np.float32)
    if kept:
        for side, values in enumerate((column, row)):
            boxes[:, side] = np.minimum.reduceat(values, starts)
            boxes[:, side + 2] = np.maximum.reduceat(values, starts) + 1
    labels = [label_of_category[instance.category] for instance in kept]
    return {
        "boxes": torch.from_numpy(boxes),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.from_numpy(masks),
        "iscrowd": torch.tensor([instance.iscrowd for instance in kept], dtype=torch.uint8),
        "area": torch.from_numpy(areas.astype(np.float32)),
    }


def drop_vanished(
    target: Target, original_area: Tensor, min_share: float = 0.0, min_px: int = 1
) -> Target:
    """Measure boxes and areas anew from masks that were cut or warped; drop what is hardly left.

    Args:
        target: with masks as augmentation left them; keys that are of no object stay as they are.
        original_area: float [n], of each object before, in pixels of the image as it is now
            (enlarged by s: times s squared).
        min_share: share of it, in 0..1, that must be left.
        min_px: pixels that must be left; at least one always.

    Raises:
        ShapeError: `original_area` is not of the objects.
    """
    masks = target["masks"]
    if original_area.shape != masks.shape[:1]:
        raise ShapeError(
            f"original_area is of {tuple(original_area.shape)}, there are {masks.shape[0]} "
            "objects: give the area of each before the augmentation"
        )
    columns, rows = masks.amax(dim=1) > 0, masks.amax(dim=2) > 0
    area = masks.flatten(1).sum(dim=1, dtype=torch.int64)
    kept = (area >= max(min_px, 1)) & (area >= min_share * original_area.to(area.device))
    boxes = torch.cat([*_ends(columns), *_ends(rows)]).view(4, -1)[[0, 2, 1, 3]].T
    measured = target | {"boxes": boxes.float(), "area": area.float()}
    return {k: v[kept] if k in OBJECT_KEYS else v for k, v in measured.items()}


def _ends(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First place and 1 + last place that is set in each row of a bool [n, L]."""
    length = occupied.shape[1]
    places = torch.arange(length, device=occupied.device)
    first = torch.where(occupied, places, length).amin(dim=1)
    last = torch.where(occupied, places + 1, 0).amax(dim=1)
    return first, last


def id_map(instances: Sequence[Instance], size: tuple[int, int]) -> Tensor:
    """int32 [H, W]: 0 for no object, else 1 + its place; the smallest on top, crowds below all.

    Raises:
        DataError: run lengths are damaged or of another size.
    """
    return torch.from_numpy(objects.id_map(instances, size))


def panoptic_target(
    instances: Sequence[Instance],
    mask: NDArray[np.uint8],
    things: Sequence[bool],
    ignore_index: int = VOID,
) -> Target:
    """The target of one image with `semantic`: ranks of stuff, then "any thing"; 255 is void.

    Args:
        instances: of a row.
        mask: uint8 [H, W], its class indices.
        things: per class, whether it is a thing.
        ignore_index: of pixels that count nowhere.

    Raises:
        DataError: run lengths are damaged or of another size.
    """
    table = np.full(256, VOID, dtype=np.int64)
    for index, label in stuff_labels(things).items():
        table[index] = label
    if 0 <= ignore_index <= 255:
        table[ignore_index] = VOID
    size = (mask.shape[0], mask.shape[1])
    target = instance_target(instances, size, thing_labels(things))
    return target | {"semantic": torch.from_numpy(table[mask])}
