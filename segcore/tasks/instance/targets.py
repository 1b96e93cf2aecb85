"""From the objects of a shard's row to the targets of instance models.

A label keeps the objects as run lengths. For a batch they are drawn into as few maps of ids as hold
them without one hiding another (one, unless objects overlap): augmentation then costs as much as
that of a class map, however many objects there are, and each comes out as its own mask would.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segcore.data.instances import Target, thing_labels
from segcore.data.sample import Instance
from segcore.data.shard_format import Row
from segcore.data.targets import Size, Targets
from segcore.data.transforms import Augmentation
from segcore.inference import rle

# Less of an object shows no more what it is: a detector that finds no such rest is not to be
# taught that it missed one. COCO's crops are trained with such a limit as well.
MIN_SHARE = 0.25
# A mask head sees cells of several pixels: a rest of three pixels is noise of the resampling.
MIN_PX = 4
GRID_PX = 64  # between the objects of a made-up batch

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class ObjectLabel:
    """The objects of one image.

    Args:
        instances: of thing classes.
        size: (height, width) of the image.
        mask: encoded map of class indices; None where only objects count.
    """

    instances: tuple[Instance, ...]
    size: Size
    mask: bytes | None = None


class ObjectTargets(Targets):
    """Boxes, labels, masks, crowd flags and areas of objects, as torchvision's detectors take them.

    Args:
        things: per class, whether it is a thing.
        min_share: an object of which augmentation left a smaller share, in 0..1, is dropped.
        min_px: likewise of fewer pixels; one in any case.
    """

    what = "objects"
    any_size = True

    def __init__(
        self, things: Sequence[bool], *, min_share: float = MIN_SHARE, min_px: int = MIN_PX
    ) -> None:
        self.labels = thing_labels(things)
        self.min_share = min_share
        self.min_px = min_px

    def is_labelled(self, row: Row) -> bool:
        """Whether its objects are known; it may have none."""
        return row.instances is not None

    def label(self, row: Row) -> ObjectLabel:
        """The objects of thing classes."""
        kept = tuple(one for one in row.instances or () if one.category in self.labels)
        return ObjectLabel(kept, (row.height, row.width))

    def items(self, label: ObjectLabel, size: Size) -> list[Tensor]:
        """A `Mask` [L, H, W] of ids: 0, or 1 + the place of an object in the label."""
        from torchvision import tv_tensors

        return [tv_tensors.Mask(torch.from_numpy(draw_layers(label.instances, size)))]

    def target(self, items: list[Tensor], label: ObjectLabel, size: Size) -> Target:
        """See `segcore.data.instances`; objects that nothing changed are kept whatever they are."""
        return self.changed(items, label, np.ones(len(label.instances)))

    def augment(
        self,
        augmentation: Augmentation,
        image: Tensor,
        label: ObjectLabel,
        *,
        rng: np.random.Generator,
        over: tuple[int, int] | None,
    ) -> tuple[Tensor, Target]:
        """As `Targets.augment`; drops objects of which too little is left."""
        from torchvision import tv_tensors

        zoom = augmentation.enlargement(rng)
        size = (image.shape[-2], image.shape[-1])
        given = [tv_tensors.Image(image), *self.items(label, size)]
        changed, *items = augmentation.apply(given, size, rng, over=over)
        image = changed.as_subclass(Tensor)
        areas = np.array([one.area for one in label.instances], dtype=np.float64)
        least = np.maximum(self.min_share * zoom**2 * areas, max(1, self.min_px))
        return image, self.changed(items, label, least)

    def changed(self, items: list[Tensor], label: ObjectLabel, least: NDArray[Any]) -> Target:
        """The target after augmentation.

        Args:
            items: what became of `items`.
            label: of the row.
            least: pixels that must be left of each object.
        """
        return objects_of(items[0], label.instances, self.labels, least)

    def collate(self, images: Sequence[Tensor], targets: Sequence[Any]) -> dict[str, Any]:
        """Lists: images and targets may have unlike sizes."""
        return {"image": list(images), "target": list(targets)}


def draw_layers(instances: Sequence[Instance], size: Size) -> Ids:
    """Maps of ids, int32 [L, H, W], L >= 1, in which no object hides another.

    Each object goes to the first map where its pixels are free.

    Raises:
        DataError: run lengths are damaged or of another size.
    """
    owner, row, column = rle.decode_pixels([one.counts for one in instances], *size)
    place = row * size[1] + column
    flat = np.zeros((1, size[0] * size[1]), dtype=np.int32)
    flat[0, place] = owner + 1
    if (flat[0, place] != owner + 1).any():
        flat[:] = 0
        bounds = np.searchsorted(owner, np.arange(len(instances) + 1))
        for index, (start, stop) in enumerate(pairwise(bounds.tolist())):
            pixels = place[start:stop]
            free = np.flatnonzero(~flat[:, pixels].any(axis=1))
            if not free.size:
                flat = np.concatenate([flat, np.zeros_like(flat[:1])])
            flat[free[0] if free.size else -1, pixels] = index + 1
    return flat.reshape(-1, *size)


def objects_of(
    layers: Tensor, instances: Sequence[Instance], labels: Mapping[int, int], least: NDArray[Any]
) -> Target:
    """The target of one image, of the objects that have enough pixels.

    Args:
        layers: int [L, H, W], maps of ids.
        instances: that the ids count.
        labels: of each class index.
        least: pixels, at least 1, that each object must have.

    Shape:
        least: [len(instances)]
    """
    ids = layers.as_subclass(Tensor).numpy()
    areas = np.bincount(ids.ravel(), minlength=len(instances) + 1)[1:]
    kept = np.flatnonzero(areas >= least)
    ranks = np.zeros(len(instances) + 1, dtype=np.int32)
    ranks[kept + 1] = np.arange(1, len(kept) + 1)
    ranked = ranks[ids]
    layer, row, column = np.nonzero(ranked)
    owner = ranked[layer, row, column] - 1
    masks = np.zeros((len(kept), *ids.shape[1:]), dtype=np.uint8)
    masks[owner, row, column] = 1
    boxes = np.zeros((len(kept), 4), dtype=np.float32)
    boxes[:, :2] = np.inf
    for side, values in enumerate((column, row)):
        np.minimum.at(boxes[:, side], owner, values)
        np.maximum.at(boxes[:, side + 2], owner, values + 1)
    chosen = [instances[i] for i in kept.tolist()]
    return {
        "boxes": torch.from_numpy(boxes),
        "labels": torch.tensor([labels[one.category] for one in chosen], dtype=torch.int64),
        "masks": torch.from_numpy(masks),
        "iscrowd": torch.tensor([one.iscrowd for one in chosen], dtype=torch.uint8),
        "area": torch.from_numpy(areas[kept].astype(np.float32)),
    }


def random_objects(size: Size, *, count: int, channels: int) -> dict[str, Any]:
    """A made-up batch: noise with a grid of square objects of the first thing.

    Args:
        size: (height, width) of each image.
        count: images.
        channels: of each.
    """
    height, width = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = (y % GRID_PX < GRID_PX // 2) & (x % GRID_PX < GRID_PX // 2)
    ids = (y // GRID_PX * (width // GRID_PX + 1) + x // GRID_PX + 1) * inside
    numbers = torch.unique(ids)[1:]
    masks = (ids == numbers[:, None, None]).to(torch.uint8)
    rows, columns = masks.any(2).float(), masks.any(1).float()
    left, top = columns.argmax(1), rows.argmax(1)
    boxes = torch.stack([left, top, left + columns.sum(1), top + rows.sum(1)], 1).float()
    target = {
        "boxes": boxes,
        "labels": torch.ones(len(masks), dtype=torch.int64),
        "masks": masks,
        "iscrowd": torch.zeros(len(masks), dtype=torch.uint8),
        "area": masks.flatten(1).sum(1).float(),
    }
    images = list(torch.randint(256, (count, channels, height, width), dtype=torch.uint8))
    return {"image": images, "target": [dict(target) for _ in images]}
