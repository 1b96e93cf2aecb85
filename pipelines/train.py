"""Stage train: shards and params in; a model package and a registry version out."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import segcore
from pipelines import stage, storage
from pipelines.cluster import train as ray_train
from pipelines.cluster.submit import here_or_there
from pipelines.errors import TrackingError
from pipelines.mirror import Mirror
from pipelines.params import Params
from pipelines.params.file import read_yaml
from pipelines.params.planned import PLAN, load_planned, open_keys, read_plan
from pipelines.params.tune import objectives
from pipelines.tracking import names, registry
from pipelines.tracking.run import Run, open_run
from pipelines.training.build import (
    build_loaders,
    build_model,
    build_task,
    check,
    find_kind,
    predicted_task,
    with_goal,
)
from pipelines.training.ending import Asked
from pipelines.training.follow import Event, Follower
from pipelines.training.gradients import write_gradients
from pipelines.training.run_state import Best, ProgressLoader, RunState

SHARDS = Path("data/shards")
BEST = Path("outputs/tune/best.yaml")
PACKAGE = Path("outputs/candidate")
OVERLAYS, GRADIENTS = "overlays", "gradients"
OVERLAY_IMAGES = 4
IDENTITY = ("data.task", "model", "loss", "train", "cluster.num_workers")


def train_worker(
    params: Params, shards: Path | str, folder: Path, resume: dict[str, Any] | None
) -> Iterator["segcore.Epoch"]:
    """Train in one worker, with what is to be seen of an epoch left in files; free of Ray.

    Args:
        params: of the run.
        shards: folder of the dataset.
        folder: of the run, for progress, overlays and gradients.
        resume: state of a checkpoint, or None.
    """
    from segcore.engine.distributed import rank

    for epoch in fit_worker(params, shards, folder, resume):
        if epoch.complete and rank() == 0:
            show(params, shards, folder, epoch)
        yield epoch


def show(params: Params, shards: Path | str, folder: Path, epoch: "segcore.Epoch") -> None:
    """Write the overlays of an epoch, where they are due, and its gradients, if asked for."""
    stem = artifact_stem(epoch.number)
    if epoch.number % params.train.overlay_epochs == 0 or epoch.last:
        sheet = draw_overlays(params, segcore.open_shards(shards), epoch.weights())
        (folder / OVERLAYS).mkdir(exist_ok=True)
        sheet.save(folder / OVERLAYS / f"{stem}.png")
    if params.train.log_gradients:
        write_gradients(folder / GRADIENTS, stem, epoch.gradients())


def fit_worker(
    params: Params, shards: Path | str, folder: Path, resume: dict[str, Any] | None
) -> Iterator["segcore.Epoch"]:
    """The epochs of one worker; see `train_worker`."""
    yield from fit_dataset(params, segcore.open_shards(shards), folder, resume)


def fit_dataset(
    params: Params, dataset: Any, folder: Path, resume: dict[str, Any] | None
) -> Iterator["segcore.Epoch"]:
    """The epochs of one worker on an opened dataset; see `train_worker`."""
    import torch

    from segcore.engine.distributed import rank, world_size
    from segcore.machine import keep_freed_memory

    keep_freed_memory()
    torch.manual_seed(params.train.seed)
    model = build_model(params, dataset)
    task = build_task(params, dataset)
    train, val = build_loaders(params, dataset, rank=rank(), world_size=world_size())
    run = Mirror.of(params.cluster.storage, folder)
    loader = ProgressLoader(train, run) if rank() == 0 else train
    judge = None if params.train.refit else val
    options = {**params.train.fit_options(), "shard": params.cluster.shard}
    yield from segcore.fit(task, model, loader, judge, **options, resume=resume, ending=Asked(run))


def tuned(params: Params, best: Path) -> tuple[Params, dict[str, Any]]:
    """Params with the values that tune found best, and those values by dotted key."""
    overrides = read_yaml(best).get("overrides") or {} if best.is_file() else {}
    return params.override(overrides), overrides


def artifact_stem(epoch: int) -> str:
    """Name of the files that rank 0 leaves of an epoch."""
    return f"epoch_{epoch:04d}"


def predictor_of(params: Params, dataset: Any, weights: dict[str, Any]) -> Any:
    """A predictor of some weights, on the device that computes."""
    import torch

    from segcore.inference.predictor import best_device

    with torch.random.fork_rng():  # what is made here must not change what training draws
        model = build_model(params.override({"model.pretrained": False}), dataset)
    model.load_state_dict(weights)
    kind, spec = find_kind(params, dataset), package_spec(params, dataset, {})
    return kind.create_predictor(model, spec, device=best_device())


def draw_overlays(params: Params, dataset: Any, weights: dict[str, Any]) -> Any:
    """Predictions of some weights on the same few validation images, as one picture."""
    from segcore.data.rows import decode_labelled

    predictor, kind = predictor_of(params, dataset, weights), find_kind(params, dataset)
    targets = kind.targets(dataset)
    split = dataset.split("val")
    count = min(OVERLAY_IMAGES, len(split))
    chosen = [index * len(split) // count for index in range(count)]
    rows = [decode_labelled(split, index, targets) for index in chosen]
    images = [image for image, _ in rows]
    labels = [label for _, label in rows if label is not None]
    return kind.contact_sheet(images, predictor(images), labels, predictor.spec)


def package_spec(params: Params, dataset: Any, metrics: dict[str, float]) -> "segcore.PackageSpec":
    """What inference needs to know beside the weights."""
    figures = {key.removeprefix("val/"): v for key, v in metrics.items() if key.startswith("val/")}
    return segcore.PackageSpec(
        architecture=params.model.name,
        options={k: v for k, v in params.model.options.items() if k not in ("num_classes",)},
        num_classes=dataset.num_classes,
        in_channels=dataset.in_channels,
        classes=dataset.classes,
        palette=dataset.palette,
        ignore_index=dataset.ignore_index,
        mean=dataset.mean,
        std=dataset.std,
        input_size=dataset.size,
        things=dataset.info.things,
        task=predicted_task(params, dataset),
        dataset_name=dataset.name,
        dataset_digest=dataset.digest,
        metrics={key: value if value == value else None for key, value in figures.items()},
        extra={
            "loss": params.loss.name,
            "code": storage.code_version(),
            "data_source": data_source(params),
            **({"origin": dataset.meta.origin} if dataset.meta.origin else {}),
            **training_facts(dataset),
        },
    )


def training_facts(dataset: Any) -> dict[str, Any]:
    """What new pictures are compared with: class shares and intensities of the training set."""
    facts = dataset.fingerprint
    if not facts.get("pictures"):
        return {}
    shares = {entry["name"]: entry["pixel_share"] for entry in facts["classes"]}
    return {"training": {"class_shares": shares, **facts["pictures"]}}


def data_source(params: Params) -> str:
    """Where the user's own data lies; "" for a dataset that is known by its name."""
    return str(storage.absolute(params.data.path)) if params.data.name == "folder" else ""


def save(params: Params, dataset: Any, best: Best) -> Path:
    """Write the package of the best weights, with a picture of what they predict."""
    spec = package_spec(params, dataset, best.metrics)
    if open_keys(Params.load()):
        spec = replace(spec, extra={**spec.extra, "plan": read_plan()})
    sheet = draw_overlays(params, dataset, best.weights)
    package = storage.absolute(PACKAGE)
    return segcore.save_package(package, best.weights, spec, overlay=sheet)


def register(params: Params, package: Path, run: Run, best: Best) -> None:
    """Make the package a version with alias `candidate`; say so if the store is away."""
    run.set_tags({"best_epoch": best.epoch})
    run.log_metrics({f"best/{k.removeprefix('val/')}": v for k, v in best.metrics.items()}, 0)
    try:
        version = registry.Registry(params).register(package, run.id)
    except TrackingError as error:
        print(f"warning: {error}", file=sys.stderr, flush=True)
    else:
        run.set_tags({"model_version": version.uri})
        print(f"registered {version.name} version {version.version} as candidate", flush=True)


def announcement(params: Params, dataset: Any) -> str:
    """One line: what is about to be trained, and how long it takes."""
    train = params.train
    length = f"{train.epochs} epochs" if train.max_minutes is None else f"{train.max_minutes:g} min"
    pictures = len(dataset.split("train")) + (len(dataset.split("val")) if train.refit else 0)
    loss = f" with {params.loss.label}" if params.loss.label else ""
    return (
        f"training {params.model.name}{loss} on {pictures} pictures: {length}, "
        f"batches of {train.batch_size} in {train.precision}, learning rate {train.lr:g}"
    )


def main() -> None:
    """Train, or go on where an interrupted process stopped; package and register the best."""
    params, overrides = tuned(load_planned(), storage.absolute(BEST))
    shards = storage.absolute(SHARDS / params.data.name)
    dataset = segcore.open_shards(shards)
    params, kind = with_goal(params, dataset), find_kind(params, dataset)
    check(params, dataset, workers=ray_train.fewest_workers(params))
    if params.data.name == "folder":
        registry.Registry(params).check_data(package_spec(params, dataset, {}))
    inputs = {**params.pick(IDENTITY), "shards": dataset.digest}
    digest = storage.run_digest("train", inputs)
    folder = storage.run_folder(params.cluster.storage, "train", digest)
    goal = objectives(params.tune.metric, params.tune.mode)[0]
    state = RunState(
        folder,
        metric=goal.key,
        mode=goal.mode,
        keep_last=params.train.refit,
        storage=params.cluster.storage,
    )

    def report(event: Event) -> None:
        step = event["epoch"] if event["complete"] else event["step"]
        prefix = "" if event["complete"] else "steps/"
        metrics = {prefix + key: value for key, value in event["metrics"].items()}
        run.log_metrics(metrics, step, time_s=event["time_s"])
        if event["complete"]:
            for kind in (OVERLAYS, GRADIENTS):
                state.mirror.pull(kind)
                for file in sorted((folder / kind).glob(f"{artifact_stem(event['epoch'])}.*")):
                    run.log_artifact(file, kind)

    name, resume_id = names.train_name(params), state.recall().get("run_id")
    with open_run("train", params, name=name, resume_id=resume_id, later=True) as run:
        run.when_open(lambda run_id: state.remember({"run_id": run_id}))
        run.log_dataset(dataset.name, dataset.digest, path=shards, rows=len(dataset.split("train")))
        if storage.absolute(PLAN).is_file():
            run.log_artifact(storage.absolute(PLAN))
        run.set_tags({"run_digest": digest, **{f"tuned.{k}": v for k, v in overrides.items()}})
        print(announcement(params, dataset), flush=True)
        with Follower(
            state,
            epochs=params.train.epochs,
            max_minutes=params.train.max_minutes,
            headline=(kind.headline_label, f"val/{kind.headline}"),
            on_event=report,
            on_start=run.begin,
        ):
            best = ray_train.run(train_worker, params, dataset.source, state=state)
        register(params, save(params, dataset, best), run, best)
    state.clear()


if __name__ == "__main__":
    stage.run(here_or_there("train", main))
