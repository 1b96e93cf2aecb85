"""Small shards of painted objects on stuff, and predictions made from their labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import segcore
from segcore.data.codec import encode_image, encode_mask
from segcore.data.objects import instance_of
from segcore.data.sample import DatasetInfo, Instance
from segcore.data.shard_format import PixelCounts, Row, ShardMeta
from segcore.data.shards import write_shards
from segcore.inference import rle
from segcore.tasks.instance import InstancePrediction
from segcore.tasks.instance.detections import Detections
from segcore.tasks.instance.predictor import class_indices
from segcore.tasks.instance.targets import ObjectLabel

CLASSES = ("sky", "disk", "ground", "square")
THINGS = (False, True, False, True)
PALETTE = ((90, 120, 200), (220, 60, 60), (90, 90, 90), (240, 200, 60))
SIZE = (64, 80)

Bools = NDArray[np.bool_]


def paint(seed: int, count: int = 4) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[Instance]]:
    """Image [64, 80, 3], class map with a void corner, and objects that may overlap."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(SIZE, np.uint8)
    mask[36:] = 2
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    instances = []
    for place in range(count):
        cy, cx, radius = rng.integers((10, 10, 5), (54, 70, 10))
        disk = place % 2 == 0
        inside = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        square = (abs(y - cy) < radius - 1) & (abs(x - cx) < radius - 1)
        shape = inside if disk else square
        mask[shape] = 1 if disk else 3
        made = instance_of(shape, 1 if disk else 3, iscrowd=place == 3)
        instances += [made] if made is not None else []
    image = np.array(PALETTE, np.uint8)[mask].astype(np.int64) + rng.integers(-20, 21, (*SIZE, 3))
    mask[:4, :4] = 255
    return image.clip(0, 255).astype(np.uint8), mask, instances


def row(name: str, count: int = 4) -> Row:
    """The row of a shard of this name; every third image has no object."""
    number = int(name[-2:])
    image, mask, instances = paint(number, 0 if number % 3 == 2 else count)
    encoded = encode_image(image, "png")
    return Row(name, encoded, encode_mask(mask), tuple(instances), (0, 1, 2, 3), *SIZE, "0" * 64)


def write(path: Path, splits: Mapping[str, Sequence[str]]) -> Any:
    """Shards of such rows, opened."""
    meta = ShardMeta(
        info=DatasetInfo(
            name="objects",
            version="1",
            classes=CLASSES,
            palette=PALETTE,
            things=THINGS,
            tasks=("semantic", "instance", "panoptic"),
        ),
        in_channels=3,
        size=None,
        mean=(0.4, 0.4, 0.4),
        std=(0.2, 0.2, 0.2),
        pixel_counts=PixelCounts(pixels=[1] * 4, image_pixels=[4] * 4, total=4),
    )
    write_shards(path, meta, splits=splits, encode=row, rows_per_shard=8)
    return segcore.open_shards(path)


def spec(
    task: str, architecture: str, *, ignore_index: int = 255, **options: Any
) -> segcore.PackageSpec:
    """What a package of a model on these shards says."""
    return segcore.PackageSpec(
        architecture=architecture,
        options=options,
        num_classes=4,
        classes=CLASSES,
        palette=PALETTE,
        things=THINGS,
        ignore_index=ignore_index,
        mean=(0.4, 0.4, 0.4),
        std=(0.2, 0.2, 0.2),
        task=task,
    )


def detections(
    masks: Sequence[Bools], labels: Sequence[int], scores: Sequence[float]
) -> Detections:
    """Objects of these masks [H, W], none of them empty."""
    boxes = [
        [x.min(), y.min(), x.max() + 1, y.max() + 1] for y, x in (np.nonzero(m) for m in masks)
    ]
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.array(scores, np.float32),
        tuple(rle.encode(mask) for mask in masks),
        (masks[0].shape[0], masks[0].shape[1]) if masks else SIZE,
    )


def guess(instances: Sequence[Instance], seed: int) -> Detections:
    """Most of the objects, moved a little, some in the wrong class, by falling score."""
    rng = np.random.default_rng(seed)
    masks, labels = [], []
    for one in instances:
        if rng.random() < 0.8:
            mask = rle.decode(one.counts, *SIZE)
            masks.append(np.roll(mask, rng.integers(-2, 3, 2), (0, 1)))
            labels.append(int(rng.integers(1, 3)) if rng.random() < 0.2 else 1 + one.category // 2)
    return detections(masks, labels, np.sort(rng.uniform(0.3, 1, len(masks)))[::-1].tolist())


def label(seed: int, count: int = 8) -> ObjectLabel:
    """The objects of a painted image."""
    _, _, instances = paint(seed, count)
    return ObjectLabel(tuple(instances), SIZE)


def prediction(seed: int, count: int = 8) -> InstancePrediction:
    """A guess at them."""
    found = guess(label(seed, count).instances, seed)
    return InstancePrediction(found, class_indices(found.labels, THINGS))
