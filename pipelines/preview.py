"""The plan for a folder that no stage has seen yet."""

from pathlib import Path

from pipelines.params import Params
from pipelines.plan import make_plan, show
from pipelines.sources import create_dataset, show_progress


def plan_folder(params: Params, folder: Path) -> None:
    """Print the plan for a folder of one's own; nothing is written but the timing of a step.

    Raises:
        DataError: the folder cannot be used; says why.
    """
    from segcore.data.prepare import validate
    from segcore.data.statistics import measure

    params = params.override({"data.name": "folder", "data.path": str(folder)})
    with show_progress() as progress:
        found = validate(create_dataset(params), size=params.data.size, progress=progress)
    found.check(params.data.max_rejected)
    meta = measure(
        found.samples,
        found.found,
        found.info,
        size=params.data.size,
        image_encoding=params.data.image_encoding,
    )
    decisions, machine = make_plan(params, meta)
    print(f"plan for {found.info.name} on {machine.name}, {machine.cores} cores:")
    show(decisions)
