"""Instance segmentation: objects, each with class, box, mask and score."""

from segcore.tasks.instance.kind import KIND
from segcore.tasks.instance.predictor import InstancePrediction, InstancePredictor
from segcore.tasks.instance.task import InstanceTask, create_instance_task

__all__ = [
    "KIND",
    "InstancePrediction",
    "InstancePredictor",
    "InstanceTask",
    "create_instance_task",
]
