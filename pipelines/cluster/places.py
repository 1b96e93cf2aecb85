"""Room for the trials of a search: processors and GPUs, whole or in parts."""

import math

from pipelines.cluster.session import Resources
from pipelines.errors import ClusterError
from pipelines.params import Params

OUTER_CPU = 0.01  # of a process that only waits for the workers of its group


def check(params: Params, resources: Resources, *, here: bool) -> None:
    """Refuse more trials at once than there are processors or GPUs, rather than wait forever.

    Args:
        params: of the search.
        resources: of the cluster, or of this machine.
        here: on a Ray of this search alone; another one needs a processor for those who wait.

    Raises:
        ClusterError: names what is asked for and what is there.
    """
    settings = params.tune
    is_group = settings.workers > 1
    processes = settings.concurrent * settings.workers
    each = settings.workers * (params.cluster.cpus_per_worker if is_group else 1)
    waiting = 1 if is_group and not here else 0
    needed = settings.concurrent * each + waiting
    room = resources.room(each // settings.workers)
    if needed > resources.cpus or processes > room:
        fits = max(1, min((resources.cpus - waiting) // each, room // settings.workers))
        raise ClusterError(
            f"tune.concurrent {settings.concurrent} trials of tune.workers {settings.workers} need "
            f"{needed} CPUs, {resources.cpus} are there: set tune.concurrent to {fits} "
            "or less, or add nodes (cluster.address)"
        )
    whole = 1.0 if is_group else settings.gpus
    if whole and resources.gpus and resources.gpus * int(1.0 / whole) < processes:
        raise ClusterError(
            f"tune.concurrent {settings.concurrent} trials of tune.workers {settings.workers} with "
            f"{whole:g} GPUs each do not fit on {resources.gpus} GPUs: set tune.concurrent or "
            "tune.gpus to less, or add nodes (cluster.address)"
        )


def slots(params: Params) -> int:
    """Processors that a local Ray counts: one for each process at work, whatever there is."""
    settings = params.tune
    if settings.workers == 1:
        return settings.concurrent
    return settings.concurrent * settings.workers * params.cluster.cpus_per_worker + 1


def share(params: Params, resources: Resources, *, here: bool) -> dict[str, float]:
    """Resources of one trial, as Ray counts them.

    Args:
        params: `tune.gpus`, or an equal share of those that are there.
        resources: of the cluster.
        here: on a Ray of this search alone, which counts processes.
    """
    settings = params.tune
    if settings.workers > 1:
        return {"CPU": OUTER_CPU}
    cpus = 1 if here else _equal_share(resources, settings.concurrent)
    if not resources.gpus:
        return {"CPU": cpus, "GPU": 0.0}
    each = 1.0 / math.ceil(settings.concurrent / resources.gpus)  # no trial lies on two GPUs
    return {"CPU": cpus, "GPU": settings.gpus or each}


def _equal_share(resources: Resources, concurrent: int) -> int:
    """The most processors that each of so many trials can have; those of one are on one node."""
    most = resources.cpus // concurrent
    return max(
        (cpus for cpus in range(1, most + 1) if resources.room(cpus) >= concurrent), default=1
    )
