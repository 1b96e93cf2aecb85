"""Stage plan: shards and this machine in; outputs/plan.yaml, a value with its reason a key, out."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pipelines import stage, storage
from pipelines.params import Params
from pipelines.params.planned import PLAN
from pipelines.params.section import AUTO
from pipelines.sources import shards_folder
from segcore.errors import DataError, OptionError

if TYPE_CHECKING:
    from pipelines.planning.facts import Decision
    from segcore.data.shard_format import ShardMeta
    from segcore.machine import Machine


def make_plan(params: Params, meta: "ShardMeta") -> tuple[dict[str, "Decision"], "Machine"]:
    """Decide every value that is `auto`.

    Args:
        params: as written; with `cluster.address` set, the machine is a node of that cluster.
        meta: of the dataset, with its fingerprint.

    Raises:
        DataError: the shards were written without a fingerprint.
        OptionError: a key is auto that no rule decides.
        ClusterError: no cluster answers at `cluster.address`.
    """
    from pipelines.cluster.node import on_the_node, training_machine
    from pipelines.planning.decide import decide
    from pipelines.planning.timing import RememberedSteps, measure_step

    machine = training_machine(params.cluster)
    if not meta.fingerprint:
        raise DataError(
            f"the shards of {meta.info.name} hold no facts to plan by: an older version wrote "
            "them, run the prepare stage again"
        )
    task = task_of(params, meta.info.tasks)
    height, width = meta.fingerprint["sizes"]["median"]
    timer = RememberedSteps(
        storage.scratch(params.cluster.storage),
        machine,
        size=(int(height), int(width)),
        channels=meta.in_channels,
        task=task,
        classes=meta.info.classes,
        things=meta.info.things,
        measure=on_the_node(params.cluster, measure_step),
    )
    return decide(params, meta.fingerprint, machine, timer, task=task), machine


def task_of(params: Params, tasks: Sequence[str]) -> str:
    """The kind of task that will be trained: as set, else the model's, else the data's first.

    Raises:
        OptionError: the data have no labels for `data.task`, or the model is for another.
    """
    wanted = params.data.task
    if params.model.name != AUTO:
        from segcore.tasks import choose_task

        data = SimpleNamespace(name=params.data.name, tasks=tuple(tasks))
        return choose_task(params.model.name, data, wanted)
    if wanted is None:
        return tasks[0]
    from segcore.tasks import labels_for

    if labels_for(wanted) not in tasks:
        raise OptionError(
            f"data.task is {wanted}, and {params.data.name} has labels for {', '.join(tasks)}: "
            "take one of these, or give such labels"
        )
    return wanted


def show(decisions: dict[str, "Decision"]) -> None:
    """Print key, value and reason, a line each."""
    from pipelines.planning.file import rows

    table = rows(decisions)
    widths = [max(len(row[column]) for row in table) for column in (0, 1)]
    for key, value, why in table:
        print(f"  {key:<{widths[0]}}  {value:<{widths[1]}}  {why}")


def main() -> None:
    params = Params.load()
    from pipelines.planning.file import write_plan
    from segcore.data.shards import open_shards

    dataset = open_shards(storage.absolute(shards_folder(params)))
    decisions, machine = make_plan(params, dataset.meta)
    file = storage.absolute(PLAN)
    about = {"name": dataset.name, "digest": dataset.digest}
    if not any(map(dataset.meta.fingerprint["images"].get, ("test", "val"))):
        print(
            f"plan: {dataset.name} has no test and no val images: the stage evaluate will have "
            "nothing to judge by; give it some (test.txt, a test folder, or no splits at all)"
        )
    if write_plan(file, decisions, dataset=about, machine=machine):
        print(f"plan for {dataset.name} on {machine.name}, {machine.cores} cores:")
        show(decisions)
    else:
        print(f"plan: as before, {Path(PLAN)}")


if __name__ == "__main__":
    stage.run(main)
