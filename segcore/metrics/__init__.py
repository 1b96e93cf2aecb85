"""Metrics that stream: update(prediction, target), compute(), and states that add up."""

from segcore.metrics.boundary import BoundaryScore
from segcore.metrics.calibration import CalibrationError
from segcore.metrics.confusion import ConfusionMatrix
from segcore.metrics.rand import RandScore
from segcore.metrics.scores import Scores, scores

__all__ = ["BoundaryScore", "CalibrationError", "ConfusionMatrix", "RandScore", "Scores", "scores"]
