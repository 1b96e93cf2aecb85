"""Objects of an image in numpy: id maps and windows to instances and back, and their faults."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segcore.data.codec import resize_mask
from segcore.data.sample import DatasetInfo, Instance
from segcore.errors import DataError
from segcore.inference import rle

OVERLAP = 0.1
SHOWN = 5

Ids = NDArray[np.int32]
Size = tuple[int, int]
Say = Callable[[str, str, str, str], None]
"""Called with (fault, value, fix, severity)."""


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """What the objects of one image, crowds aside, measure.

    Args:
        areas: pixels of each that is to be seen.
        touching: whether two of them share a border, a corner or a pixel.
    """

    areas: NDArray[np.int64]
    touching: bool


def instance_of(
    mask: NDArray[np.bool_],
    category: int,
    iscrowd: bool = False,
    *,
    corner: tuple[int, int] = (0, 0),
    size: Size | None = None,
) -> Instance | None:
    """The instance that a binary mask shows; None if it is empty.

    Args:
        mask: bool [h, w]: all of the image, or a window of it.
        category: class index.
        iscrowd: whether it is a group.
        corner: (top, left) of the window.
        size: (height, width) of the image; None: the mask is all of it.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    top, left = int(rows[0]), int(columns[0])
    window = mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
    whole = (mask.shape[0], mask.shape[1]) if size is None else size
    placed = (corner[0] + top, corner[1] + left)
    return Instance(
        category=category,
        bbox=(float(placed[1]), float(placed[0]), float(window.shape[1]), float(window.shape[0])),
        area=float(np.count_nonzero(window)),
        counts=rle.encode_window(window, placed, whole),
        iscrowd=iscrowd,
    )


def resize_instance(instance: Instance, source: Size, size: Size) -> Instance | None:
    """The instance at another size, by nearest neighbours; None where no pixel of it is left."""
    mask = rle.decode(instance.counts, *source).astype(np.uint8)
    return instance_of(resize_mask(mask, size).astype(bool), instance.category, instance.iscrowd)


def compact_ids(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], Ids]:
    """(the ids above 0 that occur, sorted; map of ranks: 0 for none, else 1 + place in them)."""
    found, where = np.unique(ids, return_inverse=True)
    ranks = where.reshape(ids.shape).astype(np.int32)
    return (found[1:], ranks) if found.size and found[0] == 0 else (found, ranks + 1)


def instances_of_ranks(
    ranks: Ids, categories: Sequence[int | None], crowds: Sequence[bool] = ()
) -> tuple[Instance, ...]:
    """One instance for each rank of a map that has a category.

    Args:
        ranks: int [H, W]: 0 for none, else 1 + place in `categories`.
        categories: class index of each; None: it is no object.
        crowds: whether each is a group; none without.
    """
    from scipy.ndimage import find_objects

    size = (ranks.shape[0], ranks.shape[1])
    instances = []
    for place, window in enumerate(find_objects(ranks, len(categories))):
        category = categories[place]
        if window is None or category is None:
            continue
        corner = (window[0].start, window[1].start)
        crowd = bool(crowds) and crowds[place]
        mask = ranks[window] == place + 1
        instance = instance_of(mask, category, crowd, corner=corner, size=size)
        if instance is not None:
            instances.append(instance)
    return tuple(instances)


def drawing_order(instances: Sequence[Instance]) -> list[int]:
    """Places of the instances in the order in which they are painted: crowds, then the largest."""
    return sorted(
        range(len(instances)), key=lambda i: (not instances[i].iscrowd, -instances[i].area)
    )


def id_map(instances: Sequence[Instance], size: Size) -> Ids:
    """Paint objects over each other, the smallest last and crowds first.

    Args:
        instances: of one image.
        size: (height, width) of it.

    Returns:
        int32 [H, W]: 0 where there is none, else 1 + its place in `instances`.

    Raises:
        DataError: run lengths are damaged or of another size.
    """
    order = np.array(drawing_order(instances), dtype=np.int64)
    owner, row, column = rle.decode_pixels([instances[i].counts for i in order], *size)
    ids = np.zeros(size, dtype=np.int32)
    ids[row, column] = order[owner] + 1  # numpy keeps the last of equal places
    return ids


def paint_classes(instances: Sequence[Instance], size: Size) -> NDArray[np.uint8]:
    """The class map uint8 [H, W] of objects over class 0; see `id_map`."""
    table = np.array([0, *(instance.category for instance in instances)], dtype=np.uint8)
    classes: NDArray[np.uint8] = table[id_map(instances, size)]
    return classes


def touching(ids: Ids) -> bool:
    """Whether pixels of two objects of an id map are neighbours, diagonally too."""
    neighbours = (
        (ids[1:], ids[:-1]),
        (ids[:, 1:], ids[:, :-1]),
        (ids[1:, 1:], ids[:-1, :-1]),
        (ids[1:, :-1], ids[:-1, 1:]),
    )
    return any(bool(((a != b) & (a > 0) & (b > 0)).any()) for a, b in neighbours)


def measure_objects(
    instances: Sequence[Instance], source: Size, size: Size | None = None
) -> ObjectFacts:
    """What the objects measure, at the size in which the image is stored.

    Raises:
        DataError: run lengths are damaged or of another size.
    """
    single = [instance for instance in instances if not instance.iscrowd]
    ids = id_map(single, source)
    if size is not None:
        resized = Image.fromarray(ids).resize((size[1], size[0]), Image.Resampling.NEAREST)
        ids = np.asarray(resized, dtype=np.int32)
    areas = np.bincount(ids.ravel(), minlength=len(single) + 1)[1:]
    if size is None:
        areas = np.array([int(instance.area) for instance in single], dtype=np.int64)
    return ObjectFacts(areas[areas > 0].astype(np.int64), touching(ids))


def check_instances(instances: Sequence[Instance], size: Size, info: DatasetInfo, say: Say) -> None:
    """Say what is wrong with the objects of one image.

    Args:
        instances: all of them.
        size: (height, width) of the image.
        info: of the dataset.
        say: told of each fault.
    """
    sound: list[Instance] = []
    for place, instance in enumerate(instances):
        fault = _fault(instance, size, info)
        if fault is None:
            sound.append(instance)
        else:
            say(fault[0], f"object {place}: {fault[1]}", fault[2], "error")
    _check_overlap([instance for instance in sound if not instance.iscrowd], size, say)


def _fault(instance: Instance, size: Size, info: DatasetInfo) -> tuple[str, str, str] | None:
    """(fault, value, fix) of one object; None if it is sound."""
    category = instance.category
    if not 0 <= category < info.num_classes:
        fix = f"use 0..{info.num_classes - 1}, or name more classes"
        return "class id out of range", str(category), fix
    if info.things and not info.things[category]:
        fix = "make the class a thing, or remove the object"
        return "object of a stuff class", info.classes[category], fix
    try:
        _, row, _ = rle.decode_pixels([instance.counts], *size)
    except DataError as error:
        return "run lengths of another size", str(error), "encode it at its image's size"
    if not row.size:
        return "empty object", info.classes[category], "draw it, or remove it"
    left, top, width, height = instance.bbox
    if left < 0 or top < 0 or left + width > size[1] or top + height > size[0]:
        value = f"box {[left, top, width, height]}, image {size[0]}x{size[1]}"
        return "object outside the picture", value, "keep its box within the image"
    return None


def _check_overlap(instances: Sequence[Instance], size: Size, say: Say) -> None:
    """Warn of objects of which more than a tenth belongs to others as well."""
    owner, row, column = rle.decode_pixels([i.counts for i in instances], *size)
    place = row * size[1] + column
    shared = np.bincount(place, minlength=1)[place] > 1
    areas = np.bincount(owner, minlength=len(instances))
    shares = np.bincount(owner[shared], minlength=len(instances)) / np.maximum(areas, 1)
    many = np.flatnonzero(shares > OVERLAP)
    if many.size:
        worst = int(shares.argmax())
        value = (
            f"{many.size} of {len(instances)} objects share more than {OVERLAP:.0%} of their "
            f"pixels, the {worst}th {shares[worst]:.0%}"
        )
        say("overlapping objects", value, "nothing, or give each pixel to one object", "warning")
