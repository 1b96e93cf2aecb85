"""Ray Tune around the same generator of epochs: what `params.tune` describes, gone through."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import segcore
from pipelines.cluster import places, session
from pipelines.cluster.shared import check_shared
from pipelines.cluster.train import TrainWorker
from pipelines.cluster.trial import TrialJob
from pipelines.cluster.trial_facts import Trial
from pipelines.errors import TrainingFailedError
from pipelines.mirror import Mirror
from pipelines.params import Params
from pipelines.tracking.run import Run
from pipelines.training import failure


def search(
    worker: TrainWorker,
    params: Params,
    shards: Path | str,
    *,
    folder: Path,
    run: Run,
    on_epoch: Callable[[], None],
) -> list[Trial]:
    """Run, or go on with, the search that `params.tune` describes.

    Args:
        worker: trains one trial, in one process or in each of several.
        params: of the run; `tune.space` says what is varied.
        shards: of the dataset: an absolute folder, or an address.
        folder: state of the search; found again after a kill.
        run: MLflow run of the search; each trial becomes a child.
        on_epoch: called after each epoch of a trial.

    Returns:
        Every trial that ended; at least one has all objectives.

    Raises:
        ClusterError: not enough processors or GPUs for `tune.concurrent` trials.
        TrainingFailedError: every trial failed.
        SegcoreError: of a trial, where no other values would have helped; it ends the search.
    """
    state = Mirror.of(params.cluster.storage, folder)
    failure.clear(state)
    here = session.address(params.cluster) == "local"
    with session.connect(params.cluster, slots=places.slots(params) if here else None) as resources:
        check_shared({"data.root": shards})
        places.check(params, resources, here=here)
        alone = params.tune.workers == 1
        ready = _warm_up(worker, params.tune.concurrent) if here and alone else []
        # These import Ray, which must find its settings.
        from pipelines.cluster import tuner
        from pipelines.cluster.local_head import shared_environment
        from pipelines.cluster.trials import Trials

        threads = _threads(resources, params.tune.concurrent) if here and alone else None
        job = TrialJob(worker, params, shards, state, threads, use_gpu=resources.gpus > 0)
        trials = Trials(state, run.id, params.tune)
        share = places.share(params, resources, here=here)
        with (
            trials.watched(run, on_epoch),
            shared_environment() if here else nullcontext(),
        ):
            search = tuner.build(job, trials, share)
            _wait(ready)
            search.fit()
    if (known := failure.read(state)) is not None:
        raise known
    return _checked(trials.ended(), [goal.metric for goal in params.tune.objectives])


def _checked(ended: list[Trial], metrics: list[str]) -> list[Trial]:
    """The trials, unless none ended well."""
    if not any(trial.measured(metrics) for trial in ended):
        failures = [trial.why for trial in ended if trial.why]
        why = failures[0] if failures else f"no trial has a value of {', '.join(metrics)}"
        raise TrainingFailedError(f"no trial of {len(ended)} ended well: {why}")
    return ended


def _threads(resources: session.Resources, concurrent: int) -> int:
    """Threads of one trial here: what the environment says, else an equal share."""
    return int(os.environ.get("OMP_NUM_THREADS") or resources.cpus // concurrent)


def _warm_up(worker: TrainWorker, count: int) -> list[Any]:
    """Let the processes that Ray has started import what a trial needs, beside this one."""
    import ray

    call = ray.remote(num_cpus=0)(_import_all)
    return [call.remote(worker) for _ in range(count)]


def _import_all(worker: TrainWorker) -> None:
    from ray import tune  # noqa: F401 - what the trials' class needs

    for name in ("create_loaders", "create_model", "create_task", "fit", "open_shards"):
        getattr(segcore, name)


def _wait(ready: list[Any]) -> None:
    """Until the processes are warm: Ray would start others in place of those that are busy."""
    import ray

    ray.get(ready)
