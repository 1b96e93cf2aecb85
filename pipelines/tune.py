"""Stage tune: shards and params in; outputs/tune/best.yaml, which train applies, out."""

from typing import Any

import yaml

import segcore
from pipelines import stage, storage, train
from pipelines.cluster import tune as ray_tune
from pipelines.cluster.submit import here_or_there
from pipelines.params import Params
from pipelines.params.planned import load_planned
from pipelines.progress import progress
from pipelines.tracking.names import tune_name
from pipelines.tracking.run import open_run
from pipelines.training.build import check, with_goal
from pipelines.training.run_state import RunState
from segcore.errors import OptionError

IDENTITY = ("data.task", "model", "loss", "train", "tune")
SECTIONS = ("model", "loss", "train")


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
        ends = distribution.ends()
        if distribution.kind != "choice":
            low, high = distribution.low, distribution.high
            if not low < high or (distribution.kind == "loguniform" and low <= 0):
                raise OptionError(
                    f"tune.space {key} goes from {low} to {high}: low must be less than high"
                    + (", and above 0" if distribution.kind == "loguniform" else "")
                )
        for end in ends:
            ray_tune.trial_params(params, {key: end})


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
        write({}, metric=settings.metric, value=None, trials={})
        return
    shards = storage.absolute(train.SHARDS / params.data.name)
    dataset = segcore.open_shards(shards)
    params = with_goal(params, dataset)
    settings = params.tune
    for key, distribution in params.search_space().items():
        for end in distribution.ends():
            check(ray_tune.trial_params(params, {key: end}), dataset)
    inputs = {**params.pick(IDENTITY), "shards": dataset.digest}
    folder = storage.run_folder(params.cluster.storage, "tune", storage.run_digest("tune", inputs))
    state = RunState(
        folder, metric=settings.metric, mode=settings.mode, storage=params.cluster.storage
    )
    resume_id = state.recall().get("run_id")
    with open_run("tune", params, name=tune_name(params), resume_id=resume_id) as run:
        run.when_open(lambda run_id: state.remember({"run_id": run_id}))
        run.log_dataset(dataset.name, dataset.digest, path=shards, rows=len(dataset.split("train")))
        with progress("tune", settings.trials * settings.epochs, unit="epochs") as advance:
            found = ray_tune.search(
                train.fit_worker,
                params,
                dataset.source,
                folder=folder,
                run=run,
                on_epoch=lambda: advance(1),
            )
        run.log_metrics({f"best/{settings.metric}": found.value}, 0)
        run.set_tags({f"best.{key}": value for key, value in found.overrides.items()})
        write(
            found.overrides,
            metric=settings.metric,
            value=found.value,
            trials=found.trials,
            run_id=run.id,
        )
    state.clear()


if __name__ == "__main__":
    stage.run(here_or_there("tune", main))
