"""Kinds of tasks by name: what a batch means to the loop, and a prediction to every stage."""

import importlib
from collections.abc import Mapping
from typing import Any

from segcore.errors import OptionError, unknown_name
from segcore.models import MODELS, model_card
from segcore.tasks.base import Batch, Metric, Step, Task
from segcore.tasks.kind import Kind

__all__ = [
    "TASKS",
    "Batch",
    "Kind",
    "Metric",
    "Step",
    "Task",
    "choose_task",
    "create_task",
    "get_kind",
    "labels_for",
    "list_tasks",
]

TASKS: dict[str, str | Kind] = {
    "instance": "segcore.tasks.instance:KIND",
    "panoptic": "segcore.tasks.panoptic:KIND",
    "semantic": "segcore.tasks.semantic:KIND",
    "semi_supervised": "segcore.tasks.semi_supervised:KIND",
}


def list_tasks() -> list[str]:
    """Kinds that `create_task` takes."""
    return sorted(TASKS)


def get_kind(name: str) -> Kind:
    """The kind of task of this name.

    Raises:
        UnknownNameError: no such kind.
    """
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    found = TASKS[name]
    if isinstance(found, Kind):
        return found
    module, _, attribute = found.partition(":")
    kind: Kind = getattr(importlib.import_module(module), attribute)
    return kind


def labels_for(name: str) -> str:
    """The kind of task of whose labels a dataset must have some for the task `name`.

    Raises:
        UnknownNameError: no such kind.
    """
    return get_kind(name).extends or name


def choose_task(architecture: str, dataset: Any, wanted: str | None = None) -> str:
    """Name of the task that an architecture has on a dataset.

    What its card says; for an architecture without one, the wanted one, or the first that the
    dataset has labels for.

    Args:
        architecture: a name that `create_model` takes.
        dataset: of `open_shards`.
        wanted: what the architecture must be for; None for anything.

    Raises:
        UnknownNameError: no task of that name is known.
        OptionError: the dataset has no labels for it, or the architecture is for another.
    """
    if wanted is not None and wanted not in TASKS:
        raise unknown_name("task", wanted, TASKS)
    first = wanted or dataset.tasks[0]
    name: str = model_card(architecture).task if architecture in MODELS else first
    if wanted is not None and name not in (wanted, labels_for(wanted)):
        raise OptionError(
            f"data.task is {wanted}, and model.name {architecture} is for the task {name}: take "
            "another model, or set data.task to null"
        )
    name = wanted or name
    if labels_for(name) not in dataset.tasks:
        raise OptionError(
            f"model.name is {architecture}, which is for the task {name}, and {dataset.name} has "
            f"labels for {', '.join(dataset.tasks)}: take another model, or give such labels"
        )
    return name


def create_task(
    kind: str,
    dataset: Any = None,
    *,
    model: str | None = None,
    model_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Task:
    """Build a task for `fit`.

    Args:
        kind: a key of `TASKS`.
        dataset: of `open_shards`; says what the labels are. Keywords of the same name go first.
        model: name of the architecture, where its training depends on it (`Kind.of`).
        model_options: of that architecture.
        options: of the task: for "semantic" see `create_semantic_task`.

    Raises:
        UnknownNameError: no such kind.
        OptionError: an option is missing or wrong.
    """
    found = get_kind(kind)
    if model is not None:
        found = found.of(model, model_options or {})
    return found.create_task(dataset, **options)
