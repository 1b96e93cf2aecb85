"""From the objects and the class map of a shard's row to the targets of panoptic models."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segcore.data.codec import decode_mask
from segcore.data.instances import VOID, Target, stuff_labels
from segcore.data.shard_format import Row
from segcore.data.targets import Described, Size
from segcore.tasks.instance.targets import ObjectLabel, ObjectTargets

MAX_UINT8 = 255


class PanopticTargets(ObjectTargets):
    """Targets of objects, with `semantic`: ranks of stuff, then "any thing"; 255 is void.

    Args:
        data: says the classes.
    """

    what = "objects and mask"

    def __init__(self, data: Described) -> None:
        super().__init__(data.things)
        self.ignore_index = data.ignore_index
        self.table = np.full(MAX_UINT8 + 1, VOID, dtype=np.int64)
        for index, label in stuff_labels(data.things).items():
            self.table[index] = label
        if 0 <= data.ignore_index <= MAX_UINT8:
            self.table[data.ignore_index] = VOID

    def is_labelled(self, row: Row) -> bool:
        """Whether it has both."""
        return row.instances is not None and row.mask is not None

    def label(self, row: Row) -> ObjectLabel:
        """The objects, and the map as it is stored."""
        found = super().label(row)
        return ObjectLabel(found.instances, found.size, row.mask)

    def items(self, label: ObjectLabel, size: Size) -> list[Tensor]:
        """The ids of objects [L, H, W], and the class map [H, W]."""
        from torchvision import tv_tensors

        if label.mask is None:
            raise ValueError("a panoptic label has a class map")
        classes = torch.from_numpy(np.array(decode_mask(label.mask)))
        if not 0 <= self.ignore_index <= MAX_UINT8:
            classes = classes.int()
        return [*super().items(label, size), tv_tensors.Mask(classes)]

    def changed(self, items: list[Tensor], label: ObjectLabel, least: NDArray[Any]) -> Target:
        """Objects of which enough is left, and the map of stuff."""
        target = super().changed(items, label, least)
        classes = items[1].as_subclass(Tensor).numpy()
        known = (classes >= 0) & (classes <= MAX_UINT8)
        semantic = np.where(known, self.table[np.where(known, classes, 0)], VOID)
        return target | {"semantic": torch.from_numpy(semantic)}
