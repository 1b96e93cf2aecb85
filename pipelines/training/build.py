"""What params describe, built for a dataset: model, task, loaders; and refused in time."""

from typing import TYPE_CHECKING, Any

import segcore
from pipelines import storage
from pipelines.params import Params
from pipelines.params.section import AUTO
from pipelines.params.tune import MILLISECONDS
from segcore.errors import OptionError
from segcore.machine import choose_loader_workers, describe_machine

if TYPE_CHECKING:
    from segcore.tasks import Kind


def task_name(params: Params, dataset: Any) -> str:
    """Name of the kind of task that is trained: the model's own, else the dataset's first.

    Raises:
        OptionError: data.task is another, or the dataset has no labels for it.
    """
    from segcore.tasks import choose_task

    return choose_task(params.model.name, dataset, params.data.task)


def find_kind(params: Params, dataset: Any) -> "Kind":
    """The kind of task that is trained, as the architecture needs it."""
    from segcore.tasks import get_kind

    return get_kind(task_name(params, dataset)).of(params.model.name, params.model.options)


def predicted_task(params: Params, dataset: Any) -> str:
    """Name of the kind of task as which the trained model predicts."""
    from segcore.tasks import labels_for

    return labels_for(task_name(params, dataset))


def with_goal(params: Params, dataset: Any) -> Params:
    """Params in which `tune.metric` and `tune.mode`, where auto, are those of the kind of task."""
    kind, metric, mode = find_kind(params, dataset), params.tune.metric, params.tune.mode
    asked = [metric] if isinstance(metric, str) else metric
    names = [kind.headline if name == AUTO else name for name in asked]
    modes: Any = mode
    if mode == AUTO:
        modes = ["min" if name == MILLISECONDS else kind.mode(name) for name in names]
    if isinstance(metric, str):
        modes = modes[0] if isinstance(modes, list) else modes
        return params.override({"tune.metric": names[0], "tune.mode": modes})
    return params.override({"tune.metric": names, "tune.mode": modes})


def loader_options(params: Params) -> dict[str, Any]:
    """Keyword arguments of `segcore.create_loaders` that are the same on every rank."""
    return {
        "batch_size": params.train.batch_size,
        "seed": params.train.seed,
        "augment": params.train.augment.model_dump(),
        "cache": params.data.cache,
        "cache_dir": storage.scratch(params.cluster.storage) / "cache",
        "workers": choose_loader_workers(params.train.loader_workers, describe_machine()),
        "epoch_steps": params.train.epoch_steps,
        "refit": params.train.refit,
    }


def build_model(params: Params, dataset: Any) -> Any:
    """The architecture that params name, for the classes and channels of a dataset.

    Raises:
        OptionError: an option that the architecture lacks, or one that the dataset decides.
    """
    fixed = find_kind(params, dataset).model_facts(dataset)
    for key, value in fixed.items():
        if params.model.options.get(key, value) != value:
            raise OptionError(
                f"model.options.{key} is {params.model.options[key]}, dataset {dataset.name} has "
                f"{value}: remove it from model.options, it follows from the data"
            )
    options = {key: value for key, value in params.model.options.items() if key not in fixed}
    return segcore.create_model(
        params.model.name, **fixed, pretrained=params.model.pretrained, **options
    )


def build_task(params: Params, dataset: Any) -> Any:
    """The task of the model on a dataset, with the loss that params name."""
    options = {**params.loss.task_options(), **params.train.options}
    return find_kind(params, dataset).create_task(dataset, **options)


def build_loaders(params: Params, dataset: Any, **options: Any) -> tuple[Any, Any]:
    """Loaders of train and val; `options` go before those of params."""
    loading = {**loader_options(params), **options}
    return find_kind(params, dataset).create_loaders(dataset, **loading)


def check(params: Params, dataset: Any, *, workers: int = 1) -> None:
    """Refuse what could only fail later: a model or loss that cannot be, images that do not fit.

    Args:
        params: of the run or of one trial.
        dataset: opened shards.
        workers: processes that share a batch.

    Raises:
        SegcoreError: a name, an option, a value or the data is wrong.
    """
    from segcore.engine.options import FitOptions, check_resizes

    FitOptions(**params.train.fit_options())
    check_size(params, dataset)
    _check_refit(params, dataset)
    cache = loader_options(params)["cache"]
    if cache == "disk":
        cache = "none"  # written by the first worker; here it would take minutes
    build_loaders(params, dataset, cache=cache, world_size=workers)
    model, task = build_model(params, dataset), build_task(params, dataset)
    check_resizes(task, params.train.progressive)
    if params.cluster.shard:
        _check_shard(params, task, model)


def _check_refit(params: Params, dataset: Any) -> None:
    """Refuse to train on the only images that can judge.

    Raises:
        OptionError: train.refit is true, and no test image has a label.
    """
    from segcore.tasks import get_kind
    from segcore.tasks.judging import has_label

    if not params.train.refit:
        return
    kind = get_kind(predicted_task(params, dataset))
    if has_label(dataset, kind, "val") and not has_label(dataset, kind, "test"):
        raise OptionError(
            "train.refit is true, and no test image has a label: those of val will judge, and must "
            "not be trained on; set train.refit to false, or give test labelled images"
        )


def _check_shard(params: Params, task: Any, model: Any) -> None:
    """Refuse a training that cannot be cut into parts.

    Raises:
        OptionError: says why.
    """
    from segcore.engine.sharding import check_shardable

    if params.train.log_gradients:
        raise OptionError(
            "train.log_gradients looks at whole gradients, cluster.shard cuts them into parts: set "
            "one of them to false"
        )
    check_shardable(
        steps=len(task.steps()),
        average=params.train.ema_decay is not None,
        judged=task.judged(model) is not model,
        precision=params.train.precision,
    )


def check_size(params: Params, dataset: Any) -> None:
    """Compare the smallest images with what the architecture says that it takes.

    Raises:
        OptionError: it takes volumes, or larger images.
    """
    name = params.model.name
    if name not in segcore.list_models():
        return  # torchvision's have no card; an unknown name is refused when it is built
    card = segcore.model_card(name)
    if card.input_dims != 2:
        raise OptionError(
            f"model.name is {name}, which takes volumes [N, C, D, H, W], and {dataset.name} has "
            "images: take another model"
        )
    crop = params.train.augment.crop
    train = [tuple(crop)] if crop else dataset.split("train").sizes
    sides = [min(size) for size in [*train, *dataset.split("val").sizes]]
    takes = f"model.name is {name}, which takes images of at least {card.min_size} pixels a side; "
    if sides and min(sides) < card.min_size:
        raise OptionError(
            f"{takes}the smallest side is {min(sides)}: enlarge data.size or train.augment.crop"
        )
    if params.train.progressive and sides and min(map(min, train)) < 2 * card.min_size:
        raise OptionError(
            f"{takes}train.progressive halves a side of {min(map(min, train))}: set it to 0"
        )
