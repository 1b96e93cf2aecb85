"""What targets of instance and panoptic models hold, and the labels of their classes.

A target is a dict of tensors: `boxes` float32 [n, 4] of (x0, y0, x1, y1) in pixels, `labels` int64
[n], `masks` uint8 [n, H, W] of 0 and 1, `iscrowd` uint8 [n], `area` float32 [n] in pixels. Panoptic
ones also have `semantic` int64 [H, W].
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

Target = dict[str, Tensor]

VOID = 255  # in `semantic`: counts nowhere


def thing_labels(things: Sequence[bool]) -> dict[int, int]:
    """Class index of each thing -> its label: 1 + its rank among the things."""
    return {c: rank for rank, c in enumerate(np.flatnonzero(things).tolist(), start=1)}


def stuff_labels(things: Sequence[bool]) -> dict[int, int]:
    """Class index -> label in `semantic`: the rank among the stuff, for all things their number."""
    stuff = np.flatnonzero(~np.asarray(things, dtype=bool)).tolist()
    ranks = {c: rank for rank, c in enumerate(stuff)}
    return {c: ranks.get(c, len(stuff)) for c in range(len(things))}
