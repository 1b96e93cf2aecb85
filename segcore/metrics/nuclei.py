"""The score of the 2018 Data Science Bowl: objects found, over rising demands on their outline.

Reference: Caicedo et al. 2019, Nature Methods 16, doi:10.1038/s41592-019-0612-7.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segcore.errors import OptionError
from segcore.metrics.masks import mask_iou, pack_masks
from segcore.metrics.matching import THRESHOLDS, as_array, entry
from segcore.metrics.records import Record, RecordMetric, check_weights, ratio

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class BowlRecord(Record):
    """Objects of one image found, false and missed at each IoU threshold.

    Shape:
        tp, fp, fn: [T] int64
    """

    tp: Integers
    fp: Integers
    fn: Integers


def match_bowl(
    pred: Mapping[str, Any], target: Mapping[str, Any], *, min_score: float = 0.5
) -> BowlRecord:
    """Pair predicted and true masks one to one, as many as can be, with no regard to classes.

    A pair must have an IoU above the threshold. A prediction without a partner is no false alarm
    if more of it than the threshold lies on a crowd.

    Args:
        pred: `masks`, and `scores` [m] if present: only objects of min_score or more count.
        target: `masks`, and `iscrowd` [n] if present.
    """
    kept = None
    if "scores" in pred:
        kept = np.flatnonzero(as_array(pred, "scores", np.float64) >= min_score)
    found, truth = pack_masks(entry(pred, "masks"), kept), pack_masks(entry(target, "masks"))
    crowd = np.zeros(len(truth), dtype=bool)
    if "iscrowd" in target:
        crowd = as_array(target, "iscrowd", bool)
    overlap = mask_iou(found, truth, crowd)
    iou, covered = overlap[:, ~crowd], overlap[:, crowd].max(1, initial=0.0)
    tp, fp = np.zeros((2, len(THRESHOLDS)), dtype=np.int64)
    for t, threshold in enumerate(THRESHOLDS):
        paired = _partners(iou > threshold)
        tp[t] = paired.sum()
        fp[t] = (~paired & (covered <= threshold)).sum()
    return BowlRecord(tp, fp, iou.shape[1] - tp)


def _partners(fits: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which rows [m] of fits [m, n] have a partner in a largest one-to-one pairing."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    if not fits.any():
        return np.zeros(len(fits), dtype=bool)
    return np.asarray(maximum_bipartite_matching(csr_array(fits), perm_type="column") >= 0)


def weighted_bowl(records: Sequence[BowlRecord], weights: Any) -> dict[str, Floats]:
    """The score under weights of the images: mean over thresholds, then over images.

    An image without any object, where nothing was found, scores 1.

    Shape:
        weights: [R, B] at least 0, B the number of records
        returns: [R] dsb; NaN where no image counts
    """
    weights = check_weights(weights, len(records))
    return {"dsb": ratio(weights @ image_scores(records), weights.sum(1))}


def image_scores(records: Sequence[BowlRecord]) -> Floats:
    """The score of each image: [B], mean over thresholds of TP / (TP + FP + FN)."""
    if not records:
        return np.zeros(0)
    tp, fp, fn = (np.stack([getattr(r, name) for r in records]) for name in ("tp", "fp", "fn"))
    return np.asarray(np.nan_to_num(ratio(tp, tp + fp + fn), nan=1.0).mean(1))


class BowlScore(RecordMetric[BowlRecord]):
    """The Bowl's score over everything that was added.

    Args:
        min_score: predictions below it do not count; the score knows no ranking.
    """

    def __init__(self, min_score: float = 0.5) -> None:
        if not 0 <= min_score <= 1:
            raise OptionError(f"min_score is {min_score}: give a score within 0..1")
        super().__init__(BowlRecord)
        self.min_score = min_score

    def match(self, pred: Mapping[str, Any], target: Mapping[str, Any]) -> BowlRecord:
        """The record of one image."""
        return match_bowl(pred, target, min_score=self.min_score)

    def compute(self) -> dict[str, float]:
        """dsb, in 0..1; NaN before the first image."""
        figures = weighted_bowl(self.records, np.ones((1, len(self.records))))
        return {name: float(value[0]) for name, value in figures.items()}
