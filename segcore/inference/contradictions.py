"""Where a model contradicts a label: connected regions, ranked by how sure it is against it.

For labels that are to be looked at again. The model must not have been trained on the label that
it judges: what a network has learned by heart it does not contradict.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segcore.errors import ShapeError

Floats = NDArray[np.floating]
LEAST = 0.05  # what an unsure model leaves of a score
OUTLINE_PX = 3.0  # depth in a region from which a pixel counts whole: outlines are uncertain


@dataclass(frozen=True)
class Contradiction:
    """A connected region in which the label says one class and the model another.

    Args:
        label: class of the label.
        predicted: class that the model finds most probable.
        area: pixels.
        box: (top, left, bottom, right) in pixels; bottom and right are the first outside.
        confidence: mean probability of `predicted`, in 0..1.
        doubt: mean probability of `label`, in 0..1.
        score: how strongly it speaks against the label, in pixels.
    """

    label: int
    predicted: int
    area: int
    box: tuple[int, int, int, int]
    confidence: float
    doubt: float
    score: float


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a model says of the label of one picture.

    Args:
        regions: contradictions, the strongest first.
        sureness: [K], for each class the sum of its probability where the label has it.
        pixels: [K], how many pixels these are.
    """

    regions: tuple[Contradiction, ...]
    sureness: NDArray[np.float64]
    pixels: NDArray[np.int64]


def calibrate(judgements: Sequence[Judgement]) -> list[tuple[Contradiction, ...]]:
    """The regions of each picture, the strongest first, scored by what is usual for their classes.

    A model that finds road with 0.9 wherever labels have it, and with 0.6 here, errs more probably
    than one that is as sure as ever. A region's score is multiplied by 0.5 where the model is as
    sure of its class as it usually is, by 1 where it is surer by half of what is left to certainty,
    by LEAST where it is less sure by as much. That classes have thresholds of their own is the idea
    of confident learning (Northcutt et al. 2021, arXiv:1911.00068).

    Args:
        judgements: of all pictures, at least one.
    """
    pixels = np.sum([one.pixels for one in judgements], axis=0)
    usual = np.sum([one.sureness for one in judgements], axis=0) / np.maximum(pixels, 1)
    spare = np.maximum(1.0 - usual, 1e-6)

    def scored(region: Contradiction) -> Contradiction:
        excess = (region.confidence - usual[region.predicted]) / spare[region.predicted]
        return replace(region, score=region.score * float(np.clip(0.5 + excess, LEAST, 1.0)))

    return [
        tuple(sorted(map(scored, one.regions), key=lambda region: -region.score))
        for one in judgements
    ]


def judge(probabilities: Floats, label: NDArray[np.integer], *, ignore_index: int) -> Judgement:
    """What the probabilities say of a picture's label.

    A region is 4-connected, of one class in the label and one class most probable. Each of its
    pixels speaks by p(predicted) - p(label), less where it lies within OUTLINE_PX of the region's
    outline; the sum is divided by the root of the area, so that a small region of which the model
    is sure comes before a large one of which it is not, and a large one before a small one else.

    Args:
        probabilities: of each class, out of fold.
        label: class indices; `ignore_index` and what is no class speak neither way.
        ignore_index: of pixels without a label.

    Shape:
        probabilities: [K, H, W]
        label: [H, W]

    Raises:
        ShapeError: they differ in size.
    """
    if probabilities.shape[1:] != label.shape:
        raise ShapeError(
            f"probabilities are {probabilities.shape}, the label is {label.shape}: both must have "
            "the picture's height and width"
        )
    classes = len(probabilities)
    label = label.astype(np.int64)
    valid = (label != ignore_index) & (label >= 0) & (label < classes)
    predicted = probabilities.argmax(0)
    best = probabilities.max(0)
    inside = np.where(valid, label, 0)
    own = np.take_along_axis(probabilities, inside[None], 0)[0]
    wrong = valid & (predicted != label)
    pairs = np.where(wrong, inside * classes + predicted, -1)
    found = [
        _describe(region, offset, int(pair), classes, best, own)
        for pair in np.unique(pairs[wrong])
        for region, offset in _regions(pairs == pair)
    ]
    return Judgement(
        regions=tuple(sorted(found, key=lambda one: -one.score)),
        sureness=np.bincount(label[valid], own[valid], minlength=classes).astype(np.float64),
        pixels=np.bincount(label[valid], minlength=classes),
    )


def _regions(mask: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.bool_], tuple[slice, slice]]]:
    """Each connected region, as a mask of its box, and the box."""
    numbers, _ = ndimage.label(mask)
    for number, box in enumerate(ndimage.find_objects(numbers), start=1):
        yield numbers[box] == number, box


def _describe(
    region: NDArray[np.bool_],
    box: tuple[slice, slice],
    pair: int,
    classes: int,
    best: Floats,
    own: Floats,
) -> Contradiction:
    depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1][region]
    sure, doubt = best[box][region].astype(np.float64), own[box][region].astype(np.float64)
    weight = np.minimum(1.0, depth / OUTLINE_PX)
    rows, columns = box
    return Contradiction(
        label=pair // classes,
        predicted=pair % classes,
        area=int(region.sum()),
        box=(rows.start, columns.start, rows.stop, columns.stop),
        confidence=float(sure.mean()),
        doubt=float(doubt.mean()),
        score=float(((sure - doubt) * weight).sum() / np.sqrt(region.sum())),
    )
