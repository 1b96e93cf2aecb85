"""Models that are trained beside the stage train, with its code, and are no version of a registry.

Each is kept under the digest of all that it follows from, so that a question that takes several
goes on where it was interrupted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import segcore
from pipelines import storage
from pipelines.cluster import train as ray_train
from pipelines.cluster.train import TrainWorker
from pipelines.params import Params
from pipelines.train import IDENTITY, package_spec
from pipelines.training.build import find_kind
from pipelines.training.follow import Follower
from pipelines.training.run_state import RunState
from segcore.data.shards import ShardedDataset
from segcore.errors import OptionError
from segcore.inference.predictor import best_device
from segcore.machine import choose_precision, describe_machine
from segcore.tasks.kind import AnyPredictor


def share_minutes(params: Params, models: int, minutes: float | None) -> Params:
    """Params in which each of some models has its share of the minutes.

    Args:
        params: of the stage train.
        models: that share.
        minutes: in all; None: those of the params, or as many epochs for each where they count
            epochs.

    Raises:
        OptionError: minutes are not above 0.
    """
    minutes = params.train.max_minutes if minutes is None else minutes
    if minutes is None:
        return params
    if minutes <= 0:
        raise OptionError(f"minutes is {minutes}: give the models a number above 0 to share")
    return params.override({"train.max_minutes": minutes / models})


def train_aside(
    worker: TrainWorker,
    params: Params,
    dataset: ShardedDataset,
    *,
    asker: str,
    inputs: Mapping[str, Any],
    said: str,
) -> Path:
    """The package of a model; trained unless it is there.

    Args:
        worker: as `train_worker`.
        params: of the run.
        dataset: that the worker opens.
        asker: the command, and its folder in `cluster.storage`.
        inputs: JSON values that the model follows from beside params and shards.
        said: which model it is, in lines of text.
    """
    facts = {**params.pick(IDENTITY), "shards": dataset.digest, **inputs}
    digest = storage.run_digest(asker, facts)
    package = storage.scratch(params.cluster.storage) / asker / digest
    if package.is_dir():
        print(f"{said}: trained before", flush=True)
        return package
    state = RunState(
        storage.run_folder(params.cluster.storage, asker, digest),
        metric=params.tune.objectives[0].key,
        mode=params.tune.objectives[0].mode,
        keep_last=params.train.refit,
        storage=params.cluster.storage,
    )
    kind = find_kind(params, dataset)
    print(said, flush=True)
    with Follower(
        state,
        epochs=params.train.epochs,
        max_minutes=params.train.max_minutes,
        headline=(kind.headline_label, f"val/{kind.headline}"),
        on_event=lambda event: None,
        on_start=lambda: None,
    ):
        best = ray_train.run(worker, params, dataset.source, state=state)
    package.parent.mkdir(parents=True, exist_ok=True)
    segcore.save_package(package, best.weights, package_spec(params, dataset, best.metrics))
    state.clear()
    return package


def open_model(params: Params, package: Path) -> AnyPredictor:
    """A model as evaluate would run it."""
    precision = choose_precision(params.evaluate.precision, describe_machine())
    return segcore.load_package(package, device=best_device(), precision=precision)
