"""Figures of a confusion matrix, or of a stack of them.

Reference: Long, Shelhamer & Darrell 2015 (FCN), arXiv:1411.4038, section 5: pixel accuracy, mean
accuracy, mean IoU, frequency-weighted IoU.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from segcore.errors import ShapeError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Figures of confusion matrices [..., K, K]; NaN where a figure is not defined.

    A class that is neither in the target nor in the prediction has no figures, and no part in a
    mean. One that is predicted but nowhere in the target has IoU 0, which counts in miou.

    Shape:
        pixel_accuracy: [...] share of the labelled pixels that are right
        mean_accuracy: [...] mean recall over the classes in the target
        miou: [...] mean IoU over the classes in the target or the prediction
        fw_iou: [...] IoU averaged by the classes' share of the target
        iou, precision, recall, dice: [..., K]; f1 is dice
    """

    pixel_accuracy: Floats
    mean_accuracy: Floats
    miou: Floats
    fw_iou: Floats
    iou: Floats
    precision: Floats
    recall: Floats
    dice: Floats

    @property
    def f1(self) -> Floats:
        """F1 = 2TP / (2TP + FP + FN), the same number as Dice."""
        return self.dice

    def summary(self) -> dict[str, float]:
        """The four means of one matrix, by name."""
        return {
            "miou": float(self.miou),
            "pixel_accuracy": float(self.pixel_accuracy),
            "mean_accuracy": float(self.mean_accuracy),
            "fw_iou": float(self.fw_iou),
        }

    def per_class(self) -> dict[str, list[float]]:
        """The figures of each class of one matrix: lists of K, by name."""
        return {
            "iou": self.iou.tolist(),
            "precision": self.precision.tolist(),
            "recall": self.recall.tolist(),
            "f1": self.f1.tolist(),
            "dice": self.dice.tolist(),
        }


def scores(matrix: Tensor | NDArray[Any], *, ignore_index: int | None = None) -> Scores:
    """Figures of confusion matrices, rows the true class, columns the predicted one.

    Args:
        ignore_index: a class within 0..K-1 that is not scored: it gets NaN. Its column still
            counts against the classes that were mistaken for it.

    Shape:
        matrix: [..., K, K] integer counts (or floats, weighted)

    Raises:
        ShapeError: the matrix is not square.
    """
    counts = matrix.detach().cpu().numpy() if isinstance(matrix, Tensor) else np.asarray(matrix)
    if counts.ndim < 2 or counts.shape[-1] != counts.shape[-2]:
        raise ShapeError(f"confusion matrix is {counts.shape}: give [..., K, K]")
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    actual, predicted = counts.sum(-1), counts.sum(-2)
    union = actual + predicted - right
    scored = np.ones(counts.shape[-1], dtype=bool)
    if ignore_index is not None and 0 <= ignore_index < scored.size:
        scored[ignore_index] = False
    iou = _divide(right, union, scored)
    recall = _divide(right, actual, scored)
    total = actual.sum(-1)
    return Scores(
        pixel_accuracy=_divide(right.sum(-1), total),
        mean_accuracy=_mean(recall),
        miou=_mean(iou),
        fw_iou=_divide((actual * np.nan_to_num(iou)).sum(-1), total),
        iou=iou,
        precision=_divide(right, predicted, scored),
        recall=recall,
        dice=_divide(2 * right, actual + predicted, scored),
    )


def _divide(part: Any, whole: Any, where: Any = True) -> Floats:
    """part / whole; NaN where whole is 0 or `where` is False."""
    defined = (whole > 0) & where
    empty = np.full(np.shape(whole), np.nan)
    return np.asarray(np.divide(part, whole, out=empty, where=defined), dtype=np.float64)


def _mean(values: Floats) -> Floats:
    """Mean over the last axis of what is not NaN; NaN where nothing is left."""
    defined = ~np.isnan(values)
    return _divide(np.where(defined, values, 0.0).sum(-1), defined.sum(-1))
