"""Ray's Tuner as `params.tune` describes it: scheduler, proposals, resources, failures."""

import json
import logging
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from pipelines.cluster.population import Population
from pipelines.cluster.proposals import Proposals
from pipelines.cluster.train import ray_storage
from pipelines.cluster.trial import TrialJob, run_trial
from pipelines.cluster.trials import Trials, UntilFailure, quiet_known_errors
from pipelines.params import Params
from pipelines.params.space import Choice

EXPERIMENT = "search"
REDUCTION = 2
KEPT = 4  # checkpoints of a trial in a population, which another one may be reading


def build(job: TrialJob, trials: Trials, share: dict[str, float]) -> tune.Tuner:
    """A new search, or the interrupted one in the same folder.

    Args:
        job: of each trial.
        trials: follows them.
        share: resources of one.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", "The reported value is ignored")  # of a restored trial
    # Trials leave no result files of Ray's: MLflow has the figures.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    quiet_known_errors()
    trainable = tune.with_resources(tune.with_parameters(run_trial, job=job), share)
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
    settings = job.params.tune
    is_population = settings.scheduler == "pbt"
    space = _space(job.params)
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            num_samples=settings.trials,
            # A population takes turns where there are fewer places than trials.
            max_concurrent_trials=None if is_population else settings.concurrent,
            search_alg=_search(job.params),
            scheduler=_scheduler(job.params, space, trials),
            reuse_actors=settings.workers == 1,  # torch is imported once, not once a trial
        ),
        run_config=tune.RunConfig(
            name=EXPERIMENT,
            **place,
            verbose=0,
            callbacks=[trials],
            stop=UntilFailure(job.run, settings.epochs),
            failure_config=tune.FailureConfig(max_failures=job.params.cluster.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=KEPT if is_population else None),
        ),
    )


def _space(params: Params) -> dict[str, Any]:
    makers: dict[str, Callable[[Any], Any]] = {
        "choice": lambda d: tune.choice([json.dumps(value) for value in d.values]),
        "uniform": lambda d: tune.uniform(d.low, d.high),
        "loguniform": lambda d: tune.loguniform(d.low, d.high),
        "randint": lambda d: tune.randint(d.low, d.high),
    }
    return {key: makers[entry.kind](entry) for key, entry in params.search_space().items()}


def _search(params: Params) -> Any:
    """What proposes values; the first values of a population are drawn by Ray itself."""
    settings = params.tune
    if settings.scheduler == "pbt":
        return tune.search.BasicVariantGenerator(random_state=settings.seed)
    return Proposals(settings, first_seed=params.train.seed)


def _scheduler(params: Params, space: dict[str, Any], trials: Trials) -> Any:
    """What stops or changes trials while they run; None lets each reach its full length."""
    settings = params.tune
    if settings.scheduler == "none":
        return None
    if settings.scheduler == "pbt":
        drawn = params.search_space()
        neighbours = {
            key: [json.dumps(value) for value in entry.values]
            for key, entry in drawn.items()
            if isinstance(entry, Choice)
        }
        mutations = {**space, **neighbours}
        return Population(settings, drawn, mutations, trials)
    goal = settings.objectives[0]
    return ASHAScheduler(
        time_attr="epoch",
        metric=goal.key,
        mode=goal.mode,
        max_t=settings.epochs,
        grace_period=min(settings.grace_epochs, settings.epochs),
        reduction_factor=REDUCTION,
    )
