"""Candidate against champion on the test images: score, decide, report, promote."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation import bootstrap, report, stored
from pipelines.evaluation.report import Evaluation, Outcome
from pipelines.params import Params, PromoteParams
from pipelines.progress import progress
from pipelines.storage import absolute
from pipelines.tracking.names import evaluate_name
from pipelines.tracking.registry import CHAMPION, Registry, Version
from pipelines.tracking.run import Run, open_run
from segcore.data.shards import ShardedDataset, ShardSplit, open_shards
from segcore.errors import DataError
from segcore.inference.predictor import Predictor, best_device
from segcore.machine import choose_batch_size, choose_precision, describe_machine
from segcore.metrics import scores
from segcore.package import load_package, read_spec


def evaluate(params: Params, *, shards: Path, package: Path, folder: Path) -> Outcome:
    """Score the candidate and the champion, decide, write the report, move the alias.

    Args:
        params: `evaluate`, `tracking` and `cluster.storage` are used.
        shards: the dataset.
        package: the candidate; registered again where the registry lost it.
        folder: of the report; its files are replaced.

    Raises:
        DataError: the test split is empty or unlabelled, or the candidate predicts other classes.
    """
    dataset = open_shards(shards)
    rows = _labelled(dataset)
    registry = Registry(params)
    with open_run("evaluate", params) as run:
        version = registry.ensure_registered(package)
        run.rename(evaluate_name(read_spec(package).architecture, version.version))
        champion = registry.get(version.name, CHAMPION)
        candidate = _score(registry, version, dataset, rows, params)
        if candidate is None:
            raise DataError(
                f"{package} predicts other classes than {shards} has: run the train stage again"
            )
        incumbent = None
        if champion is not None and champion.package_digest != version.package_digest:
            incumbent = _score(registry, champion, dataset, rows, params, again=True)
        outcome = _decide(params.evaluate.promote, candidate, champion, incumbent)
        report.write(folder, dataset, outcome, rows=rows)
        _record(run, registry, outcome, dataset, folder)
        if outcome.verdict == "promoted":
            registry.promote(version)
    return outcome


def _labelled(dataset: ShardedDataset) -> list[int]:
    split = dataset.split("test")
    rows = [index for index in range(len(split)) if split.read(index).mask is not None]
    if not rows:
        raise DataError(
            f"the test split of {dataset.path} has {len(split)} images and no label: give it some "
            "(test.txt, a test folder, or data.test_fraction) and run the prepare stage"
        )
    return rows


def _score(
    registry: Registry,
    version: Version,
    dataset: ShardedDataset,
    rows: list[int],
    params: Params,
    *,
    again: bool = False,
) -> Evaluation | None:
    """Per-image confusion matrices of a version; None if its classes are not the dataset's.

    They are kept, and `again` takes them from an earlier evaluation where there was one.
    """
    settings = params.evaluate
    folder = registry.download(version)
    if read_spec(folder).classes != dataset.classes:
        return None
    device, machine = best_device(), describe_machine()
    precision = choose_precision(settings.precision, machine)
    predictor = load_package(folder, device=device, precision=precision)
    predictor.crf = settings.crf.build() if settings.crf else None
    names = dataset.split("test").ids
    ids = [names[row] for row in rows]
    storage = absolute(params.cluster.storage)
    place = f"{device} {precision}"
    file = stored.stored_file(storage, predictor.digest, dataset.digest, settings, place)
    matrices = stored.load(file, ids, dataset.num_classes) if again else None
    if matrices is not None:
        print(f"{version.uri}: champion's figures from an earlier evaluation", flush=True)
        return Evaluation(version, predictor, matrices, ids)
    title = f"evaluate {version.uri}"
    size = choose_batch_size(settings.batch_size, machine)
    matrices = confusions(predictor, dataset, rows, batch_size=size, title=title)
    stored.save(file, ids, matrices)
    return Evaluation(version, predictor, matrices, ids)


def confusions(
    predictor: Predictor,
    dataset: ShardedDataset,
    rows: list[int],
    *,
    batch_size: int,
    title: str = "evaluate",
) -> NDArray[np.int64]:
    """Confusion matrices [B, K, K] (rows true, columns predicted) of rows of the test split.

    Each image is predicted at its own size; pixels of the ignored index count nowhere.
    """
    split = dataset.split("test")
    classes = dataset.num_classes
    matrices = np.zeros((len(rows), classes, classes), np.int64)
    with progress(title, len(rows)) as advance:
        for start in range(0, len(rows), batch_size):
            images, masks = _batch(split, rows[start : start + batch_size])
            for offset, prediction in enumerate(predictor(images, batch_size)):
                truth = masks[offset].astype(np.int64)
                valid = (truth != dataset.ignore_index) & (truth < classes)
                pairs = truth[valid] * classes + prediction.mask[valid]
                counts = np.bincount(pairs, minlength=classes * classes)
                matrices[start + offset] = counts.reshape(classes, classes)
            advance(len(images))
    return matrices


def _batch(
    split: ShardSplit, rows: list[int]
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    pairs = [split.decode(row) for row in rows]
    return [image for image, _ in pairs], [mask for _, mask in pairs if mask is not None]


def _decide(
    rule: PromoteParams, candidate: Evaluation, champion: Version | None, other: Evaluation | None
) -> Outcome:
    if champion is None:
        return Outcome("promoted", "There was no champion", candidate, rule)
    if champion.package_digest == candidate.version.package_digest:
        reason = f"The candidate is the champion, version {champion.version}, already"
        return Outcome("unchanged", reason, candidate, rule)
    if other is None:
        reason = f"Version {champion.version} predicts other classes and cannot be compared"
        return Outcome("promoted", reason, candidate, rule)
    comparison = bootstrap.compare(
        candidate.matrices,
        other.matrices,
        figure=lambda matrices: np.asarray(getattr(scores(matrices), rule.metric), np.float64),
        margin=rule.margin,
        confidence=rule.confidence,
        resamples=rule.resamples,
        seed=rule.seed,
    )
    verdict = bootstrap.decide(comparison, rule.margin)
    where = {"promoted": "above", "rejected": "below", "undecided": "on both sides of"}[verdict]
    reason = (
        f"Test {rule.metric} of {comparison.candidate:.4f} against {comparison.champion:.4f} of "
        f"version {champion.version}: the {rule.confidence:.0%} interval of the difference, "
        f"{comparison.low:+.4f} to {comparison.high:+.4f}, lies {where} the margin {rule.margin:g}"
    )
    return Outcome(verdict, reason, candidate, rule, champion=other, comparison=comparison)


def _record(
    run: Run, registry: Registry, outcome: Outcome, dataset: ShardedDataset, folder: Path
) -> None:
    """The decision and its figures on the version and on the run."""
    tags: dict[str, Any] = {
        "decision": outcome.verdict,
        "decision_reason": outcome.reason,
        "test_dataset_digest": dataset.digest,
        f"test_{outcome.rule.metric}": f"{outcome.candidate.figures[outcome.rule.metric]:.6f}",
        "evaluate_run": run.id,
        "evaluate_precision": outcome.candidate.predictor.network.precision,
    }
    if outcome.comparison is not None:
        figures = dataclasses.asdict(outcome.comparison)
        for key in ("difference", "low", "high", "probability"):
            tags[f"bootstrap_{key}"] = f"{figures[key]:.6f}"
        tags["bootstrap_champion"] = outcome.champion.version.version if outcome.champion else ""
    registry.set_tags(outcome.candidate.version, tags)
    run.set_tags({**tags, "model_version": outcome.candidate.version.uri})
    run.log_dataset(
        dataset.name, dataset.digest, path=dataset.path, rows=len(outcome.candidate.ids)
    )
    figures = {f"test/{key}": value for key, value in outcome.candidate.figures.items()}
    per_class = {
        f"test/iou/{name}": value
        for name, value in zip(dataset.classes, outcome.candidate.iou, strict=True)
    }
    run.log_metrics({**figures, **per_class}, step=0)
    for name in ("index.html", "metrics.json", "confusion.png"):
        run.log_artifact(folder / name)
