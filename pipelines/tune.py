"""Stage tune: shards and params in; outputs/tune/best.yaml, which train applies, a report out."""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

import segcore
from pipelines import stage, storage, train
from pipelines.cluster import tune as ray_tune
from pipelines.cluster.submit import here_or_there
from pipelines.cluster.trial_facts import COMPLETED, FAILED, PRUNED, trial_params
from pipelines.params import Params
from pipelines.params.planned import load_planned
from pipelines.params.tune import SEED
from pipelines.progress import progress
from pipelines.searching.choose import choose
from pipelines.searching.empty import write_none
from pipelines.tracking.names import tune_name
from pipelines.tracking.run import open_run
from pipelines.training.build import check, with_goal
from pipelines.training.run_state import RunState
from segcore.errors import OptionError

REPORT = Path("outputs/tune/search.html")
IDENTITY = ("data.task", "model", "loss", "train", "tune")
SECTIONS = ("model", "loss", "train")
# What a trial that takes over the weights of another one cannot change in the middle.
FIXED = ("optimizer", "batch_size", "accumulate", "epoch_steps", "seed", "channels_last", "options")


def check_space(params: Params) -> None:
    """Refuse a search space before anything starts: try each key at each end of its range.

    Raises:
        OptionError: a key that a trial cannot vary, or a value that params do not take.
    """
    for key, distribution in params.search_space().items():
        if key.split(".")[0] not in SECTIONS or key == "train.epochs":
            raise OptionError(
                f"tune.space has {key}: a trial varies keys of {', '.join(SECTIONS)} other than "
                "train.epochs (tune.epochs is the length of a trial)"
            )
        _check_fixed(params, key)
        ends = distribution.ends()
        if distribution.kind != "choice":
            low, high = distribution.low, distribution.high
            if not low < high or (distribution.kind == "loguniform" and low <= 0):
                raise OptionError(
                    f"tune.space {key} goes from {low} to {high}: low must be less than high"
                    + (", and above 0" if distribution.kind == "loguniform" else "")
                )
        for end in ends:
            trial_params(params, {key: end})


def _check_fixed(params: Params, key: str) -> None:
    """Refuse a key that the other settings of the search leave no room for.

    Raises:
        OptionError: it would be set twice, or cannot change while a trial trains.
    """
    section, _, name = key.partition(".")
    fixed = section == "model" or (section == "train" and name in FIXED)
    if params.tune.scheduler == "pbt" and fixed:
        raise OptionError(
            f"tune.space has {key}, and tune.scheduler is pbt, which changes values while a trial "
            "trains: search it with asha or none, or leave it out"
        )
    if params.tune.seeds > 1 and key == SEED:
        raise OptionError(
            f"tune.space has {SEED}, and tune.seeds is {params.tune.seeds}, which sets it: leave "
            "one of them out"
        )


def write(overrides: dict[str, Any], **facts: Any) -> None:
    """Write best.yaml whole or not at all."""
    file = storage.absolute(train.BEST)
    file.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({"overrides": overrides, **facts}, sort_keys=False)
    storage.write_atomic(file, text.encode())


def main() -> None:
    """Search, or go on with an interrupted search; `tune.trials: 0` keeps params as they are."""
    params = load_planned()
    check_space(params)
    settings = params.tune
    if settings.trials == 0 or not settings.space:
        write_none(storage.absolute(REPORT))
        write({}, metric=settings.metric, value=None, trials={})
        return
    shards = storage.absolute(train.SHARDS / params.data.name)
    dataset = segcore.open_shards(shards)
    params = with_goal(params, dataset)
    for key, distribution in params.search_space().items():
        for end in distribution.ends():
            check(trial_params(params, {key: end}), dataset)
    _search(params, dataset, shards)


def _search(params: Params, dataset: Any, shards: Path) -> None:
    """Search, choose, report."""
    from pipelines.searching import report  # after the params: they import torch
    from pipelines.searching.worker import trial_worker

    settings, goal = params.tune, params.tune.objectives[0]
    inputs = {**params.pick(IDENTITY), "shards": dataset.digest}
    folder = storage.run_folder(params.cluster.storage, "tune", storage.run_digest("tune", inputs))
    state = RunState(folder, metric=goal.metric, mode=goal.mode, storage=params.cluster.storage)
    resume_id = state.recall().get("run_id")
    with open_run("tune", params, name=tune_name(params), resume_id=resume_id) as run:
        run.when_open(lambda run_id: state.remember({"run_id": run_id}))
        run.log_dataset(dataset.name, dataset.digest, path=shards, rows=len(dataset.split("train")))
        with progress("tune", settings.trials * settings.epochs, unit="epochs") as advance:
            trials = ray_tune.search(
                trial_worker,
                params,
                dataset.source,
                folder=folder,
                run=run,
                on_epoch=lambda: advance(1),
            )
        chosen = choose(trials, settings)
        run.log_metrics({f"best/{name}": value for name, value in chosen.figures.items()}, 0)
        run.set_tags({f"best.{key}": value for key, value in chosen.overrides.items()})
        page = storage.absolute(REPORT)
        link = report.links(run)
        report.write(page, params, dataset, trials, chosen, run_id=run.id, link=link)
        run.log_artifact(page)
        counts = Counter(trial.outcome for trial in trials)
        write(
            chosen.overrides,
            metric=goal.metric,
            value=chosen.figures[goal.metric],
            figures=chosen.figures,
            trial=chosen.trial.id,
            chosen=chosen.note,
            trials={outcome: counts[outcome] for outcome in (COMPLETED, PRUNED, FAILED)},
            run_id=run.id,
        )
    state.clear()


if __name__ == "__main__":
    stage.run(here_or_there("tune", main))
