"""Ray Tune around the same generator of epochs: ASHA stops the poor, Optuna proposes the next."""

import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import segcore
from pipelines.cluster import session
from pipelines.cluster.shared import check_shared
from pipelines.cluster.train import TrainWorker, ray_storage
from pipelines.errors import TrainingFailedError
from pipelines.mirror import Mirror
from pipelines.params import Params
from pipelines.tracking.run import Run
from pipelines.training import failure
from segcore.errors import OptionError, SegcoreError

EXPERIMENT = "search"
TRIALS = "trials"
REDUCTION = 2


@dataclass(frozen=True)
class Search:
    """What a search found.

    Args:
        overrides: the best trial's values by dotted key.
        value: of the metric in that trial.
        trials: number of trials by outcome: completed, pruned, failed.
    """

    overrides: dict[str, Any]
    value: float
    trials: dict[str, int]


@dataclass(frozen=True)
class TrialJob:
    """What each trial is given, beside its own values.

    Args:
        worker, params, shards, folder: as of `search`.
        metric: that trials are compared by.
        threads: of a trial; None where Ray decides.
    """

    worker: TrainWorker
    params: Params
    shards: Path | str
    run: Mirror
    metric: str
    threads: int | None


def search(
    worker: TrainWorker,
    params: Params,
    shards: Path | str,
    *,
    folder: Path,
    run: Run,
    on_epoch: Callable[[], None],
) -> Search:
    """Run, or go on with, the search that `params.tune` describes.

    Args:
        worker: trains one trial, in one process.
        params: of the run; `tune.space` says what is varied.
        shards: of the dataset: an absolute folder, or an address.
        folder: state of the search; found again after a kill.
        run: MLflow run of the search; each trial becomes a child.
        on_epoch: called after each epoch of a trial.

    Raises:
        ClusterError: not enough processors for `tune.concurrent` trials.
        TrainingFailedError: every trial failed.
        SegcoreError: of a trial, where no other values would have helped; it ends the search.
    """
    state = Mirror.of(params.cluster.storage, folder)
    failure.clear(state)
    settings = params.tune
    metric = f"val/{settings.metric}"
    here = session.address(params.cluster) == "local"
    slots = settings.concurrent if here else None
    with session.connect(params.cluster, slots=slots) as resources:
        check_shared({"data.root": shards})
        session.check_trials(settings.concurrent, resources)
        ready = _warm_up(worker, settings.concurrent) if here else []
        # These import Ray, which must find its settings.
        from pipelines.cluster.local_head import shared_environment
        from pipelines.cluster.trials import Trials, reason

        threads = _threads(resources, settings.concurrent) if here else None
        job = TrialJob(worker, params, shards, state, metric, threads)
        trials = Trials(state, run.id, settings.epochs, metric)
        share = _share(resources, settings.concurrent, here=here)
        with (
            trials.watched(run, on_epoch),
            shared_environment() if here else nullcontext(),
        ):
            tuner = _tuner(job, trials, share)
            _wait(ready)
            results = tuner.fit()
    if (known := failure.read(state)) is not None:
        raise known
    failures = [reason(result.error) for result in results if result.error]
    done = [result for result in results if _score(result, metric) is not None]
    if not done:
        why = failures[0] if failures else f"no trial reported {metric}"
        raise TrainingFailedError(f"no trial of {len(results)} ended well: {why}")
    sign = 1.0 if settings.mode == "max" else -1.0
    best = max(done, key=lambda result: sign * float(result.metrics[metric]))
    full = [result for result in done if result.metrics["epoch"] >= settings.epochs]
    counts = {
        "completed": len(full),
        "pruned": len(done) - len(full),
        "failed": len(results) - len(done),
    }
    return Search(decode(best.config), float(best.metrics[metric]), counts)


def decode(config: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's values by dotted key; choices travel as JSON, so that any value may be one."""
    return {
        key: json.loads(value) if isinstance(value, str) else value for key, value in config.items()
    }


def trial_params(params: Params, values: Mapping[str, Any]) -> Params:
    """Params of one trial: its values, and the length that `tune` gives it."""
    bounds = {"train.epochs": params.tune.epochs, "train.max_minutes": None, "train.refit": False}
    return params.override({**values, **bounds, "train.checkpoint_steps": None})


def _space(params: Params) -> dict[str, Any]:
    from ray import tune

    makers: dict[str, Callable[[Any], Any]] = {
        "choice": lambda d: tune.choice([json.dumps(value) for value in d.values]),
        "uniform": lambda d: tune.uniform(d.low, d.high),
        "loguniform": lambda d: tune.loguniform(d.low, d.high),
        "randint": lambda d: tune.randint(d.low, d.high),
    }
    return {key: makers[entry.kind](entry) for key, entry in params.search_space().items()}


def _share(resources: session.Resources, concurrent: int, *, here: bool) -> dict[str, float]:
    """Resources of one trial, as Ray counts them: an equal share of what is there."""
    cpus = 1 if here else resources.cpus // concurrent
    return {"CPU": cpus, "GPU": min(1.0, resources.gpus / concurrent)}


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


def _tuner(job: TrialJob, trials: Any, share: dict[str, float]) -> Any:
    import optuna
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    from pipelines.cluster.trials import UntilFailure, quiet_known_errors

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", "The reported value is ignored")  # of a restored trial
    # Trials leave no result files of Ray's: MLflow has the figures.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    quiet_known_errors()
    settings = job.params.tune
    trainable = tune.with_resources(tune.with_parameters(_trial, job=job), share)
    place = ray_storage(job.run / EXPERIMENT)
    path, files = f"{place['storage_path']}/{EXPERIMENT}", place.get("storage_filesystem")
    if tune.Tuner.can_restore(path, storage_filesystem=files):
        print(f"going on with the search in {path}", flush=True)
        return tune.Tuner.restore(
            path,
            trainable=trainable,
            resume_unfinished=True,
            restart_errored=True,
            storage_filesystem=files,
        )
    return tune.Tuner(
        trainable,
        param_space=_space(job.params),
        tune_config=tune.TuneConfig(
            metric=job.metric,
            mode=settings.mode,
            num_samples=settings.trials,
            max_concurrent_trials=settings.concurrent,
            search_alg=OptunaSearch(seed=settings.seed),
            scheduler=ASHAScheduler(
                time_attr="epoch",
                max_t=settings.epochs,
                grace_period=min(settings.grace_epochs, settings.epochs),
                reduction_factor=REDUCTION,
            ),
            reuse_actors=True,  # torch is imported once, not once a trial
        ),
        run_config=tune.RunConfig(
            name=EXPERIMENT,
            **place,
            verbose=0,
            callbacks=[trials],
            stop=UntilFailure(job.run),
        ),
    )


def _trial(config: dict[str, Any], job: TrialJob) -> None:
    """One trial, in a process of its own or after another one in the same.

    An error that the user can mend is left in the trial's folder for the driver.
    """
    import torch
    from ray import tune

    if job.threads:
        torch.set_num_threads(job.threads)
    trial = job.run / f"{TRIALS}/{tune.get_context().get_trial_id()}"
    trial.folder.mkdir(parents=True, exist_ok=True)
    try:
        _train(config, job, trial.folder)
    except SegcoreError as error:
        failure.write(trial, error)
        raise


def _train(config: dict[str, Any], job: TrialJob, folder: Path) -> None:
    from ray import tune

    params = trial_params(job.params, decode(config))
    for epoch in job.worker(params, job.shards, folder, None):
        if job.metric not in epoch.metrics:
            known = sorted(key[4:] for key in epoch.metrics if key.startswith("val/"))
            raise OptionError(
                f"tune.metric {job.metric[4:]!r} is not measured; known: {', '.join(known)}"
            )
        tune.report({**epoch.metrics, "epoch": epoch.number})


def _score(result: Any, metric: str) -> float | None:
    value = (result.metrics or {}).get(metric)
    return None if value is None or value != value or result.error else float(value)
