"""Class maps learned from few masks: images without any help along."""

from segcore.tasks.semi_supervised.kind import KIND
from segcore.tasks.semi_supervised.mean_teacher import MeanTeacherTask

__all__ = ["KIND", "MeanTeacherTask"]
