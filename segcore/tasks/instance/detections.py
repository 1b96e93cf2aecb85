"""What a detector says of an image, kept small: masks of probabilities become run lengths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from segcore.inference import rle

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Size = tuple[int, int]

MASK_THRESHOLD = 0.5
AT_ONCE = 32  # masks that are resized and cut out at a time, which bounds the memory


@dataclass(frozen=True, eq=False)
class Detections:
    """Objects of one image, the highest score first.

    Args:
        boxes: float32 [n, 4] of (x0, y0, x1, y1) in pixels.
        labels: int64 [n], 1 + the rank among the things; all 1 of models of proposals.
        scores: float32 [n] in 0..1.
        counts: compressed COCO run lengths of the masks, none of them empty.
        size: (height, width) of the image.
        class_agnostic: labels mean nothing.
    """

    boxes: Floats
    labels: Integers
    scores: Floats
    counts: tuple[str, ...]
    size: Size
    class_agnostic: bool = False

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, indices: Integers) -> "Detections":
        """These objects, in this order."""
        return Detections(
            self.boxes[indices],
            self.labels[indices],
            self.scores[indices],
            tuple(self.counts[index] for index in indices.tolist()),
            self.size,
            self.class_agnostic,
        )

    @cached_property
    def windows(self) -> list[tuple[Bools, tuple[int, int]]]:
        """The mask of each object [h, w] and its (top, left) corner in the image."""
        owner, row, column = rle.decode_pixels(self.counts, *self.size)
        bounds = np.searchsorted(owner, np.arange(len(self) + 1))
        found = []
        for start, stop in pairwise(bounds.tolist()):
            rows, columns = row[start:stop], column[start:stop]
            top, left = int(rows.min()), int(columns.min())
            window = np.zeros((int(rows.max()) - top + 1, int(columns.max()) - left + 1), bool)
            window[rows - top, columns - left] = True
            found.append((window, (top, left)))
        return found

    def id_map(self) -> NDArray[np.int32]:
        """int32 [H, W]: 0 for none, else 1 + the place of an object; the higher score on top."""
        ids = np.zeros(self.size, dtype=np.int32)
        for place in range(len(self) - 1, -1, -1):
            window, (top, left) = self.windows[place]
            part = ids[top : top + window.shape[0], left : left + window.shape[1]]
            part[window] = place + 1
        return ids

    def scored(self) -> dict[str, Any]:
        """As `segcore.metrics` takes the prediction of an image."""
        return {
            "boxes": self.boxes,
            "labels": self.labels,
            "scores": self.scores,
            "masks": [{"size": list(self.size), "counts": text} for text in self.counts],
        }


def compress(
    output: Mapping[str, Tensor],
    size: Size,
    *,
    min_score: float = 0.0,
    class_agnostic: bool = False,
) -> Detections:
    """Keep of a model's output for an image what has pixels and score enough.

    Args:
        output: "boxes", "labels", "scores" and "masks" [m, 1, h, w], probabilities.
        size: (height, width) of the image; masks and boxes of another are brought to it.
        min_score: least score.
        class_agnostic: labels mean nothing.
    """
    scores = output["scores"].float()
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= min_score]
    masks = output["masks"]
    sorted_already = order.tolist() == list(range(len(order)))
    given = (int(masks.shape[-2]), int(masks.shape[-1]))
    counts: list[str] = []
    kept: list[int] = []
    for start in range(0, len(order), AT_ONCE):
        part = slice(start, min(start + AT_ONCE, len(order)))
        block = (masks[part] if sorted_already else masks[order[part]]).float()
        if given != size:
            block = functional.interpolate(block, size=size, mode="bilinear")
        inside = (block[:, 0] > MASK_THRESHOLD).cpu().numpy()
        for index, text in enumerate(map(_encode, inside), start=start):
            if text:
                counts.append(text)
                kept.append(index)
    order = order[kept]
    boxes = output["boxes"].float()[order].cpu().numpy()
    if given != size:
        boxes = boxes * (np.array([size[1], size[0]] * 2) / np.array([given[1], given[0]] * 2))
    labels = output["labels"][order].cpu().numpy().astype(np.int64)
    return Detections(
        boxes.astype(np.float32),
        np.ones_like(labels) if class_agnostic else labels,
        scores[order].cpu().numpy(),
        tuple(counts),
        size,
        class_agnostic,
    )


def _encode(mask: Bools) -> str:
    """Run lengths of a mask [H, W]; "" of an empty one."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return ""
    band = mask[rows[0] : rows[-1] + 1]
    columns = np.flatnonzero(band.any(axis=0))
    window = band[:, columns[0] : columns[-1] + 1]
    corner = (int(rows[0]), int(columns[0]))
    return rle.encode_window(window, corner, (mask.shape[0], mask.shape[1]))


def join(parts: Sequence[tuple[Detections, tuple[int, int]]], size: Size) -> Detections:
    """Objects of overlapping tiles as those of the whole image.

    An object that two tiles see is found twice, by the one perhaps cut off. So of two objects of
    one class and of unlike tiles, of which one lies for more than half within the other, the larger
    one stays. One that is larger than the overlap, and seen whole by no tile, comes in parts.

    Args:
        parts: objects of each tile, and its (top, left) corner in the image.
        size: (height, width) of the image.
    """
    moved = [_moved(found, corner, size) for found, corner in parts]
    tile = np.repeat(np.arange(len(parts)), [len(found) for found in moved])
    every = Detections(
        np.concatenate([found.boxes for found in moved]),
        np.concatenate([found.labels for found in moved]),
        np.concatenate([found.scores for found in moved]),
        tuple(text for found in moved for text in found.counts),
        size,
        any(found.class_agnostic for found in moved),
    )
    areas = np.array([int(window.sum()) for window, _ in every.windows], dtype=np.int64)
    gone = np.zeros(len(every), dtype=bool)
    for place in np.argsort(-areas, kind="stable").tolist():
        if not gone[place]:
            others = (tile != tile[place]) & (every.labels == every.labels[place]) & ~gone
            others &= (areas <= areas[place]) & _meets(every.boxes, every.boxes[place])
            for other in np.flatnonzero(others).tolist():
                shared = _shared(every.windows[place], every.windows[other])
                gone[other] = 2 * shared > areas[other]
    kept = np.flatnonzero(~gone)
    return every.take(kept[np.argsort(-every.scores[kept], kind="stable")])


def _moved(found: Detections, corner: tuple[int, int], size: Size) -> Detections:
    top, left = corner
    counts = tuple(
        rle.encode_window(window, (y + top, x + left), size) for window, (y, x) in found.windows
    )
    offset = np.array([left, top, left, top], dtype=np.float32)
    return Detections(
        found.boxes + offset, found.labels, found.scores, counts, size, found.class_agnostic
    )


def _meets(boxes: Floats, box: Floats) -> Bools:
    low = np.maximum(boxes[:, :2], box[:2])
    return np.asarray((np.minimum(boxes[:, 2:], box[2:]) > low).all(axis=1))


def _shared(first: tuple[Bools, tuple[int, int]], second: tuple[Bools, tuple[int, int]]) -> int:
    """Pixels that two windows have in common."""
    (a, at), (b, to) = first, second
    top, left = max(at[0], to[0]), max(at[1], to[1])
    bottom = min(at[0] + a.shape[0], to[0] + b.shape[0])
    right = min(at[1] + a.shape[1], to[1] + b.shape[1])
    if bottom <= top or right <= left:
        return 0
    part = a[top - at[0] : bottom - at[0], left - at[1] : right - at[1]]
    other = b[top - to[0] : bottom - to[0], left - to[1] : right - to[1]]
    return int((part & other).sum())
