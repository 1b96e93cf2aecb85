"""Panoptic segmentation: every pixel to an object or to a class of stuff."""

from segcore.tasks.panoptic.kind import KIND
from segcore.tasks.panoptic.predictor import PanopticPredictor
from segcore.tasks.panoptic.segments import Panoptic, Segment
from segcore.tasks.panoptic.task import PanopticTask, create_panoptic_task

__all__ = [
    "KIND",
    "Panoptic",
    "PanopticPredictor",
    "PanopticTask",
    "Segment",
    "create_panoptic_task",
]
