"""Labels with faults whose places are known: what the label doctor has to find."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

import segcore
from segcore.data.codec import encode_mask
from segcore.data.shards import write_shards

Mask = NDArray[np.uint8]
SWAPPED, ERASED, SHIFTED, EXCHANGED = "swapped", "erased", "shifted", "exchanged"
SORTS = (SWAPPED, ERASED, SHIFTED, EXCHANGED)
SHIFT_PX = 8
AREA_PX = 40
RING = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Planted:
    """One fault.

    Args:
        what: SWAPPED, ERASED, SHIFTED or EXCHANGED.
        rows: pictures whose label it changed; two that were exchanged, else one.
    """

    what: str
    rows: tuple[int, ...]


def plant_into(shards: Path, *, each: int, seed: int) -> list[Planted]:
    """`plant` faults into the training labels of shards; other splits stay."""
    dataset = segcore.open_shards(shards)
    splits = {name: dataset.split(name) for name in dataset.splits}
    rows = {name: [split.read(row) for row in range(len(split))] for name, split in splits.items()}
    train = splits["train"]
    masks = [np.array(train.decode(row)[1]) for row in range(len(train))]
    things = [index for index, thing in enumerate(dataset.things) if thing]
    labels, faults = plant(masks, things, each=each, seed=seed)
    rows["train"] = [
        replace(row, mask=encode_mask(label))
        for row, label in zip(rows["train"], labels, strict=True)
    ]
    write_shards(shards, dataset.meta, splits=rows, encode=lambda row: row)
    return faults


def plant(
    masks: Sequence[Mask], things: Sequence[int], *, each: int, seed: int
) -> tuple[list[Mask], list[Planted]]:
    """Put `each` faults of every sort into pictures drawn by the seed, none into a picture twice.

    Objects are connected regions of a class of `things`, of AREA_PX pixels or more. A swapped one
    takes another of these classes, an erased one the commonest class around it.
    """
    rng = np.random.default_rng(seed)
    changed, faults = [mask.copy() for mask in masks], []
    order = [int(row) for row in rng.permutation(len(masks))]
    for what in (SWAPPED, ERASED):
        found = 0
        for row in list(order):
            objects = find_objects(masks[row], things)
            if found == each or not objects:
                continue
            one = objects[int(rng.integers(len(objects)))]
            index = int(masks[row][one][0])
            if what == SWAPPED:
                others = [thing for thing in things if thing != index]
                changed[row][one] = others[int(rng.integers(len(others)))]
            else:
                ring = ndimage.binary_dilation(one, RING, iterations=2) & ~one
                changed[row][one] = int(np.bincount(masks[row][ring]).argmax())
            faults.append(Planted(what, (row,)))
            order.remove(row)
            found += 1
    for _ in range(each):
        row = order.pop()
        axis, sign = int(rng.integers(2)), int(rng.choice([-1, 1]))
        changed[row] = shift(masks[row], axis, sign * SHIFT_PX)
        faults.append(Planted(SHIFTED, (row,)))
    for _ in range(each):
        one, other = order.pop(), order.pop()
        changed[one], changed[other] = masks[other].copy(), masks[one].copy()
        faults.append(Planted(EXCHANGED, (one, other)))
    return changed, faults


def find_objects(mask: Mask, things: Sequence[int]) -> list[NDArray[np.bool_]]:
    """Connected regions of the classes, large enough to be seen."""
    found = []
    for thing in things:
        regions, count = ndimage.label(mask == thing)
        found += [regions == number for number in range(1, count + 1)]
    return [region for region in found if region.sum() >= AREA_PX]


def shift(mask: Mask, axis: int, px: int) -> Mask:
    """Moved along an axis; the border that comes free repeats the edge."""
    places = np.clip(np.arange(mask.shape[axis]) - px, 0, mask.shape[axis] - 1)
    return np.take(mask, places, axis)
