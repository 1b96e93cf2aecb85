"""Class maps learned from few masks: images without any help along."""

from segcore.tasks.semi_supervised.adversarial import AdversarialTask, WeakAdversarialTask
from segcore.tasks.semi_supervised.decoupled import DecoupledTask
from segcore.tasks.semi_supervised.kind import KIND
from segcore.tasks.semi_supervised.mean_teacher import MeanTeacherTask

__all__ = [
    "KIND",
    "AdversarialTask",
    "DecoupledTask",
    "MeanTeacherTask",
    "WeakAdversarialTask",
]
