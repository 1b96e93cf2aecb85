"""Per-image confusion matrices: the records of semantic segmentation, and their figures."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segcore.data.targets import Described
from segcore.metrics import scores

Matrices = NDArray[np.int64]  # [B, K, K], rows the true class, columns the predicted one
COLUMN = "confusion"


def count(mask: NDArray[Any], truth: NDArray[Any], data: Described) -> dict[str, Any]:
    """The pixels [K * K] of one image by true and predicted class, row by row.

    Pixels of the ignored index count nowhere.
    """
    classes = data.num_classes
    truth = truth.astype(np.int64)
    valid = (truth != data.ignore_index) & (truth < classes)
    pairs = truth[valid] * classes + mask[valid]
    return {COLUMN: np.bincount(pairs, minlength=classes * classes)}


def read(table: pa.Table, data: Described) -> Matrices:
    """The matrices of a table.

    Raises:
        ValueError: they are no counts of so many classes.
    """
    counts = np.array(table.column(COLUMN).to_pylist(), np.int64)
    if counts.shape != (len(table), data.num_classes**2) or (counts < 0).any():
        raise ValueError(f"{COLUMN} is {counts.shape} for {data.num_classes} classes")
    return counts.reshape(-1, data.num_classes, data.num_classes)


def weighted(matrices: Matrices, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums [R, K, K] by weights [R, B]; exact, since pixel counts stay below 2**53."""
    classes = matrices.shape[1]
    sums = weights @ matrices.reshape(len(matrices), -1).astype(np.float64)
    return sums.reshape(-1, classes, classes)


def figures(matrices: Matrices, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """miou, pixel_accuracy, mean_accuracy and fw_iou [R] of weighted sums."""
    found = scores(weighted(matrices, weights))
    return {
        "miou": np.asarray(found.miou, np.float64),
        "pixel_accuracy": np.asarray(found.pixel_accuracy, np.float64),
        "mean_accuracy": np.asarray(found.mean_accuracy, np.float64),
        "fw_iou": np.asarray(found.fw_iou, np.float64),
    }
