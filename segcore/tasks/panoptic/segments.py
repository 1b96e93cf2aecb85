"""Panoptic pictures: of things and stuff predicted, and of targets and labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from segcore.data.codec import decode_mask
from segcore.data.targets import Described
from segcore.inference import rle
from segcore.inference.panoptic import STUFF_AREA_PX, merge_windows, stuff_map
from segcore.tasks.instance.detections import Detections, Size, compress
from segcore.tasks.instance.targets import ObjectLabel

COCO_PIXELS = 640 * 480
SCORE = 0.5  # of a thing that is painted: panopticapi's

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Segment:
    """A part of a panoptic picture.

    Args:
        id: of its pixels.
        category: class index.
        isthing: an object; else all of a stuff class.
        score: of an object found; None of stuff and of what is true.
        area: pixels.
        iscrowd: a group that was not separated.
    """

    id: int
    category: int
    isthing: bool
    score: float | None
    area: int
    iscrowd: bool = False


@dataclass(frozen=True, eq=False)
class Panoptic:
    """Every pixel belongs to a segment, or to none.

    Args:
        ids: int32 [H, W], the segment of each pixel; 0 of none.
        segments: in the order of their ids, which count from 1.
    """

    ids: Ids
    segments: tuple[Segment, ...]

    @property
    def height(self) -> int:
        return int(self.ids.shape[0])

    @property
    def width(self) -> int:
        return int(self.ids.shape[1])

    @cached_property
    def windows(self) -> list[tuple[slice, slice]]:
        """Rows and columns that each segment lies within."""
        from scipy.ndimage import find_objects

        found: list[tuple[slice, slice]] = find_objects(self.ids, len(self.segments))
        return found

    def classes(self, void: int = -1) -> NDArray[np.int32]:
        """Class index of every pixel [H, W]; `void` of pixels of no segment."""
        table = np.array([void, *(one.category for one in self.segments)], dtype=np.int32)
        found: NDArray[np.int32] = table[self.ids]
        return found

    def scored(self) -> dict[str, Any]:
        """As `segcore.metrics.match_panoptic` takes it."""
        return {
            "ids": self.ids,
            "segments": {one.id: (one.category, int(one.iscrowd)) for one in self.segments},
        }


def least_stuff(size: Size) -> int:
    """Pixels below which stuff is left out: panopticapi's 64 x 64 of COCO's images, by the area.

    Much smaller images would have no stuff left by that number, and in larger ones it is a limit of
    what a person calls a region, so it does not grow.
    """
    return min(STUFF_AREA_PX, STUFF_AREA_PX * size[0] * size[1] // COCO_PIXELS)


def merged(
    stuff: NDArray[Any], found: Detections, things: Sequence[bool], *, min_score: float = SCORE
) -> Panoptic:
    """Things by falling score, each on what is free, then stuff on the rest.

    Args:
        stuff: class index of every pixel [H, W]; -1 where a thing is.
        found: the things, of the image's size.
        things: per class, whether it is a thing.
        min_score: of a thing.
    """
    found = found.take(np.flatnonzero(found.scores >= min_score))
    classes = np.flatnonzero(things)
    ids, segments = merge_windows(
        stuff,
        found.windows,
        classes[found.labels - 1].tolist(),
        found.scores.tolist(),
        things=things,
        stuff_area=least_stuff(found.size),
    )
    return visible(ids, [Segment(**one) for one in segments])


def of_output(
    output: Mapping[str, Tensor],
    size: Size,
    things: Sequence[bool],
    *,
    min_score: float = SCORE,
) -> Panoptic:
    """The picture of a model's output for an image.

    Args:
        output: of a detector, with "semantic" logits [S + 1, h, w].
        size: (height, width) of the image; an output of another is brought to it.
        things: per class, whether it is a thing.
        min_score: of a thing.
    """
    found = compress(output, size, min_score=min_score)
    logits = output["semantic"].float()
    if tuple(logits.shape[-2:]) != size:
        logits = functional.interpolate(logits[None], size=size, mode="bilinear")[0]
    return merged(stuff_classes(logits, things), found, things, min_score=min_score)


def stuff_classes(logits: Tensor, things: Sequence[bool]) -> NDArray[np.int16]:
    """Class index of every pixel [H, W] of semantic logits; -1 where a thing is."""
    classes: NDArray[np.int16] = stuff_map(logits, things).cpu().numpy().astype(np.int16)
    return classes


def visible(ids: Ids, segments: Sequence[Segment]) -> Panoptic:
    """A picture without the segments that others cover, numbered anew, with areas as they are."""
    areas = np.bincount(ids.ravel(), minlength=len(segments) + 1)
    table = np.zeros(len(segments) + 1, dtype=np.int32)
    kept: list[Segment] = []
    for one in segments:
        area = int(areas[one.id])
        if area:
            table[one.id] = len(kept) + 1
            kept.append(
                Segment(len(kept) + 1, one.category, one.isthing, one.score, area, one.iscrowd)
            )
    return Panoptic(table[ids], tuple(kept))


def of_target(target: Mapping[str, Tensor], things: Sequence[bool]) -> Panoptic:
    """The true picture of a batch's target; see `true_picture`.

    Args:
        target: "masks", "labels", "iscrowd", "semantic" (`segcore.data.instances`).
        things: per class, whether it is a thing.
    """
    semantic = target["semantic"].cpu().numpy()
    stuff, countable = np.flatnonzero(~np.asarray(things)), np.flatnonzero(things)
    table = np.full(256, -1)
    table[: len(stuff)] = stuff
    categories = countable[target["labels"].cpu().numpy() - 1].tolist()
    pixels = [np.flatnonzero(mask) for mask in target["masks"].cpu().numpy()]
    crowds = target["iscrowd"].cpu().numpy().astype(bool).tolist()
    return true_picture(table[semantic], list(zip(categories, crowds, pixels, strict=True)), things)


def of_label(label: ObjectLabel, data: Described) -> Panoptic:
    """The true picture of a row's label; see `true_picture`.

    Raises:
        DataError: the map or run lengths are damaged.
    """
    if label.mask is None:
        raise ValueError("a panoptic label has a class map")
    classes = decode_mask(label.mask)
    table = np.full(256, -1)
    stuff = np.flatnonzero(~np.asarray(data.things))
    table[stuff] = stuff
    if 0 <= data.ignore_index < len(table):
        table[data.ignore_index] = -1
    owner, row, column = rle.decode_pixels([one.counts for one in label.instances], *label.size)
    place = row * label.size[1] + column
    bounds = np.searchsorted(owner, np.arange(len(label.instances) + 1))
    pixels = [place[start:stop] for start, stop in pairwise(bounds.tolist())]
    objects = zip(label.instances, pixels, strict=True)
    return true_picture(
        table[classes], [(one.category, one.iscrowd, part) for one, part in objects], data.things
    )


def true_picture(
    stuff: NDArray[Any],
    objects: Sequence[tuple[int, bool, NDArray[np.int64]]],
    things: Sequence[bool],
) -> Panoptic:
    """Stuff, crowds over it, then objects, the smallest on top.

    Pixels of things without an object, and those that are not labelled, are void.

    Args:
        stuff: class index of every pixel [H, W]; -1 where it is no stuff.
        objects: (class index, whether it is a crowd, place of each pixel in the flat map).
        things: per class, whether it is a thing.
    """
    numbers = np.zeros(len(things) + 1, dtype=np.int32)
    ranks = [index for index, thing in enumerate(things) if not thing]
    numbers[ranks] = np.arange(1, len(ranks) + 1)
    ids = numbers[stuff]
    segments = [Segment(i, c, False, None, 0) for i, c in enumerate(ranks, start=1)]
    for category, crowd, pixels in sorted(objects, key=lambda one: (not one[1], -len(one[2]))):
        segments.append(Segment(len(segments) + 1, category, True, None, 0, crowd))
        ids.ravel()[pixels] = len(segments)
    return visible(ids, segments)
