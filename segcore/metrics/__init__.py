"""Metrics that stream: update(prediction, target), compute(), and states that add up."""

from segcore.metrics.confusion import ConfusionMatrix
from segcore.metrics.scores import Scores, scores

__all__ = ["ConfusionMatrix", "Scores", "scores"]
