"""A dataset's fingerprint: the facts from which a training can be planned, of one pass."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segcore.data.inspection import Inspection
from segcore.data.objects import ObjectFacts
from segcore.data.sample import SPLITS, DatasetInfo, Sample
from segcore.data.shapes import ClassShape

PERCENTILES = {"p1": 0.01, "p50": 0.5, "p99": 0.99}
SIDES = {"p5": 5, "p25": 25, "p50": 50, "p75": 75, "p95": 95}
DIGITS = 4


def fingerprint(
    samples: Sequence[Sample], found: Sequence[Inspection], info: DatasetInfo, in_channels: int
) -> dict[str, Any]:
    """The fingerprint as JSON values of four digits, all at the stored size.

    Returns:
        images: number of them by split.
        sizes: of train and val: how many distinct ones; "min", "median", "max" as [height, width],
            heights and widths each for themselves.
        channels: of every decoded image.
        grey_share, deep_share: share of the training images with one channel, with more than 8
            bits.
        intensity: percentiles of all training pixels' grey values, 0..255.
        pictures: how single training images differ: "means" and "stds" of their pixels in 0..1,
            percentiles over the images, a value per channel each; null without training images.
        oriented: by how much the shares of the classes differ between the upper and the lower
            halves of the training masks, beyond what left and right halves differ: 0..1.
        void_share: ignored pixels of the training masks / all their pixels.
        classes: of the training masks; in index order, each with "name", "pixel_share" (of
            labelled pixels), "image_share" (of masks with a pixel of it), and, null where there
            is none: "object_px" (median side, the root of the area, of its 8-connected components
            of at least 4 pixels), "objects" (median number of them in masks that have it),
            "thickness_px" (median over masks of 4 x the mean distance to its outside).
        instances: only where training images have objects; see `_instances`.
    """
    split_of = [sample.split for sample in samples]
    training = [f for s, f in zip(split_of, found, strict=True) if s == "train"]
    seen = [f.size for s, f in zip(split_of, found, strict=True) if s in ("train", "val")]
    count = max(len(training), 1)
    values = [f.values for f in training if f.values is not None]
    total = np.zeros(256, dtype=np.int64)
    for counts in values:
        total += counts
    void = int(total[info.ignore_index]) if 0 <= info.ignore_index <= 255 else 0
    facts = {
        "images": {split: split_of.count(split) for split in SPLITS},
        "sizes": _sizes(seen),
        "channels": in_channels,
        "grey_share": _short(sum(f.grey for f in training) / count),
        "deep_share": _short(sum(f.deep for f in training) / count),
        "intensity": _intensity(training),
        "pictures": _pictures(training, in_channels),
        "oriented": _short(max(0.0, _halves(training, 0) - _halves(training, 1))),
        "void_share": _short(void / max(int(total.sum()), 1)),
        "classes": [
            _class(index, training, values, total, info) for index in range(len(info.classes))
        ],
    }
    objects = [f.objects for f in training if f.objects is not None]
    return facts | ({"instances": _instances(objects)} if objects else {})


def _instances(objects: Sequence[ObjectFacts]) -> dict[str, Any]:
    """What the objects of the training images, crowds aside, measure.

    Returns:
        images: training images with labelled objects, or known to have none.
        per_image: "median", "p95", "max" number of objects.
        side_px: "min", percentiles and "max" of the root of an object's area; null without any.
        touching_share: share of the images in which two objects are neighbours or overlap.
    """
    numbers = [len(facts.areas) for facts in objects]
    sides = np.sqrt(np.concatenate([facts.areas for facts in objects]))
    ends = {"min": 0, **SIDES, "max": 100}
    return {
        "images": len(objects),
        "per_image": {
            "median": _median(numbers),
            "p95": _short(float(np.percentile(numbers, 95))),
            "max": max(numbers),
        },
        "side_px": {
            name: _short(float(np.percentile(sides, share))) if sides.size else None
            for name, share in ends.items()
        },
        "touching_share": _short(sum(facts.touching for facts in objects) / len(objects)),
    }


def _halves(training: Sequence[Inspection], axis: int) -> float:
    """Total variation distance between the class shares of the halves along y (0) or x (1)."""
    first, second = np.zeros(256), np.zeros(256)
    for inspection in training:
        for shape in inspection.shapes:
            pixels = 0 if inspection.values is None else int(inspection.values[shape.index])
            share = float(np.mean(shape.points[:, axis] < inspection.size[axis] / 2))
            first[shape.index] += pixels * share
            second[shape.index] += pixels * (1 - share)
    if not first.sum() or not second.sum():
        return 0.0
    return float(np.abs(first / first.sum() - second / second.sum()).sum() / 2)


def _sizes(seen: Sequence[tuple[int, int]]) -> dict[str, Any]:
    sizes = np.array(seen or [(0, 0)])
    return {
        "distinct": len(set(seen)),
        "min": sizes.min(axis=0).tolist(),
        "median": [_short(side) for side in np.median(sizes, axis=0)],
        "max": sizes.max(axis=0).tolist(),
    }


def _intensity(training: Iterable[Inspection]) -> dict[str, int]:
    """Smallest value at or below which a share of all pixels lies."""
    histogram = np.zeros(256, dtype=np.int64)
    for inspection in training:
        if inspection.luma is not None:
            histogram += inspection.luma
    below = np.cumsum(histogram)
    return {
        name: int(np.searchsorted(below, share * below[-1])) for name, share in PERCENTILES.items()
    }


def _pictures(training: Sequence[Inspection], channels: int) -> dict[str, Any] | None:
    seen = [f for f in training if f.sums]
    if not seen:
        return None
    pixels = np.array([max(f.size[0] * f.size[1], 1) for f in seen])[:, None]
    # A grey image has one channel, which stands for all.
    means = np.array([np.resize(f.sums, channels) for f in seen]) / pixels
    squares = np.array([np.resize(f.squares, channels) for f in seen]) / pixels
    stds = np.sqrt(np.maximum(squares - means**2, 0))
    return {
        name: {
            key: [_short(value / 255) for value in np.quantile(values, share, axis=0)]
            for key, share in PERCENTILES.items()
        }
        for name, values in (("means", means), ("stds", stds))
    }


def _class(
    index: int,
    training: Sequence[Inspection],
    values: Sequence[NDArray[np.int64]],
    total: NDArray[np.int64],
    info: DatasetInfo,
) -> dict[str, Any]:
    void = index == info.ignore_index
    labelled = int(sum(total[i] for i in range(info.num_classes) if i != info.ignore_index))
    having = 0 if void else sum(bool(counts[index]) for counts in values)
    shapes = [shape for f in training for shape in f.shapes if shape.index == index]
    return {
        "name": info.classes[index],
        "pixel_share": _short(0 if void else int(total[index]) / max(labelled, 1)),
        "image_share": _short(having / max(len(values), 1)),
        "object_px": _object_px(shapes),
        "objects": _median([int(shape.counts.sum()) for shape in shapes]),
        "thickness_px": _median([shape.thickness_px for shape in shapes]),
    }


def _object_px(shapes: Iterable[ClassShape]) -> float | None:
    """Median root of the areas of all components."""
    occurs: Counter[int] = Counter()
    for shape in shapes:
        occurs.update(dict(zip(shape.areas.tolist(), shape.counts.tolist(), strict=True)))
    areas = sorted(occurs)
    if not areas:
        return None
    ends = np.cumsum([occurs[area] for area in areas])
    middle = [(ends[-1] - 1) // 2, ends[-1] // 2]
    return _median([areas[int(i)] ** 0.5 for i in np.searchsorted(ends, middle, side="right")])


def _median(numbers: Sequence[float]) -> float | None:
    return _short(float(np.median(numbers))) if len(numbers) else None


def _short(number: float) -> float:
    """Of four significant digits; an integer where it is one."""
    short = float(f"{number:.{DIGITS}g}")
    return int(short) if short.is_integer() else short
