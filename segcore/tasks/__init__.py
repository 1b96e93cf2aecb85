"""Tasks by kind: what a batch means to the training loop."""

import importlib
from typing import Any

from segcore.errors import unknown_name
from segcore.tasks.base import Batch, Metric, Step, Task

__all__ = ["TASKS", "Batch", "Metric", "Step", "Task", "create_task", "list_tasks"]

TASKS: dict[str, str] = {
    "semantic": "segcore.tasks.semantic:create_semantic_task",
}


def list_tasks() -> list[str]:
    """Kinds that `create_task` takes."""
    return sorted(TASKS)


def create_task(kind: str, dataset: Any = None, **options: Any) -> Task:
    """Build a task for `fit`.

    Args:
        kind: a key of `TASKS`.
        dataset: of `open_shards`; says what the labels are. Keywords of the same name go first.
        options: of the task: for "semantic" see `create_semantic_task`.

    Raises:
        UnknownNameError: no such kind.
        OptionError: an option is missing or wrong.
    """
    if kind not in TASKS:
        raise unknown_name("task", kind, TASKS)
    module, _, builder = TASKS[kind].partition(":")
    task: Task = getattr(importlib.import_module(module), builder)(dataset, **options)
    return task
