"""Metrics that stream: update(prediction, target), compute(), and states that add up."""

from segcore.metrics.average_precision import (
    precision_curves,
    precision_table,
    weighted_ap,
    weighted_ar,
)
from segcore.metrics.boundary import BoundaryScore
from segcore.metrics.calibration import CalibrationError
from segcore.metrics.confusion import ConfusionMatrix
from segcore.metrics.detection import AverageRecall, MeanAveragePrecision
from segcore.metrics.matching import InstanceRecord, match_image
from segcore.metrics.nuclei import BowlRecord, BowlScore, match_bowl, weighted_bowl
from segcore.metrics.panoptic import (
    PanopticQuality,
    PanopticRecord,
    match_panoptic,
    panoptic_table,
    weighted_pq,
)
from segcore.metrics.rand import RandScore
from segcore.metrics.scores import Scores, scores

__all__ = [
    "AverageRecall",
    "BoundaryScore",
    "BowlRecord",
    "BowlScore",
    "CalibrationError",
    "ConfusionMatrix",
    "InstanceRecord",
    "MeanAveragePrecision",
    "PanopticQuality",
    "PanopticRecord",
    "RandScore",
    "Scores",
    "match_bowl",
    "match_image",
    "match_panoptic",
    "panoptic_table",
    "precision_curves",
    "precision_table",
    "scores",
    "weighted_ap",
    "weighted_ar",
    "weighted_bowl",
    "weighted_pq",
]
