"""Candidate against champion on the same held-out images: score, decide, report, promote."""

import dataclasses
from pathlib import Path
from typing import Any

from pipelines.evaluation import report, stored
from pipelines.evaluation.report import Evaluation, Outcome
from pipelines.params import Params, PromoteParams
from pipelines.params.section import AUTO
from pipelines.progress import progress
from pipelines.scoring import bootstrap
from pipelines.scoring.records import record, record_schema
from pipelines.storage import scratch
from pipelines.tracking.history import Evidence
from pipelines.tracking.names import evaluate_name
from pipelines.tracking.registry import CHAMPION, Registry
from pipelines.tracking.run import Run, open_run
from pipelines.tracking.version import Version
from segcore.data.shards import ShardedDataset, open_shards
from segcore.errors import DataError, unknown_name
from segcore.inference.predictor import best_device
from segcore.machine import choose_batch_size, choose_precision, describe_machine
from segcore.package import load_package, read_spec
from segcore.tasks import Kind, get_kind
from segcore.tasks.judging import judging


def evaluate(params: Params, *, shards: Path, package: Path, folder: Path) -> Outcome:
    """Score the candidate and the champion, decide, write the report, move the alias.

    Args:
        params: `evaluate`, `tracking` and `cluster.storage` are used.
        shards: the dataset.
        package: the candidate; registered again where the registry lost it.
        folder: of the report; its files are replaced.

    Raises:
        DataError: test and val have no label, or the candidate predicts other classes.
        UnknownNameError: the kind of task has no such figure as `evaluate.promote.metric`.
    """
    dataset = open_shards(shards)
    kind = get_kind(read_spec(package).task)
    rule = _rule(params.evaluate.promote, kind)
    judges = judging(dataset, kind)
    registry = Registry(params)
    with open_run("evaluate", params) as run:
        version = registry.ensure_registered(package)
        run.rename(evaluate_name(read_spec(package).architecture, version.version))
        champion = registry.get(version.name, CHAMPION)
        candidate = _score(registry, version, dataset, judges, params, kind=kind)
        if candidate is None:
            raise DataError(
                f"{package} predicts other classes than {shards} has: run the train stage again"
            )
        incumbent = None
        if champion is not None and champion.package_digest != version.package_digest:
            incumbent = _score(registry, champion, dataset, judges, params, kind=kind, again=True)
        outcome = _decide(rule, candidate, champion, incumbent)
        report.write(folder, dataset, outcome, rows=judges[1])
        _record(run, registry, outcome, dataset, folder)
        if outcome.verdict == "promoted":
            registry.promote(version, _evidence(outcome, run.id))
    return outcome


def _evidence(outcome: Outcome, run_id: str) -> Evidence:
    """What the history says of a promotion."""
    metric, found = outcome.rule.metric, outcome.comparison
    return Evidence(
        reason=outcome.reason,
        run_id=run_id,
        figures={metric: outcome.candidate.figures[metric]},
        champion=found.champion if found else None,
        interval=(found.low, found.high) if found else None,
        confidence=outcome.rule.confidence if found else None,
    )


def _rule(rule: PromoteParams, kind: Kind) -> PromoteParams:
    """The rule with a figure that the kind of task has."""
    metric = kind.headline if rule.metric == AUTO else rule.metric
    if metric not in kind.figure_names:
        raise unknown_name("figure", metric, kind.figure_names)
    return rule.model_copy(update={"metric": metric})


def _score(
    registry: Registry,
    version: Version,
    dataset: ShardedDataset,
    judges: tuple[str, list[int]],
    params: Params,
    *,
    kind: Kind,
    again: bool = False,
) -> Evaluation | None:
    """Per-image records of a version; None if its task or classes are not those asked for.

    They are kept, and `again` takes them from an earlier evaluation where there was one.
    """
    settings = params.evaluate
    folder = registry.download(version)
    spec = read_spec(folder)
    if spec.classes != dataset.classes or get_kind(spec.task) is not kind:
        return None
    device, machine = best_device(), describe_machine()
    precision = choose_precision(settings.precision, machine)
    options: dict[str, Any] = {"crf": settings.crf.build()} if settings.crf else {}
    predictor = load_package(folder, device=device, precision=precision, **options)
    split, rows = judges
    names = dataset.split(split).ids
    ids = [names[row] for row in rows]
    storage = scratch(params.cluster.storage)
    place = f"{device} {precision}"
    file = stored.stored_file(storage, predictor.digest, dataset.digest, settings, place)
    table = stored.load(file, ids, record_schema(kind)) if again else None
    if table is not None:
        try:
            found = Evaluation(version, predictor, kind, table, kind.records(table, dataset), split)
        except ValueError:  # of something else: as good as none
            found = None
        if found is not None:
            print(f"{version.uri}: champion's figures from an earlier evaluation", flush=True)
            return found
    size = choose_batch_size(settings.batch_size, machine)
    with progress(f"evaluate {version.uri}", len(rows)) as advance:
        table = record(
            predictor, dataset, rows, kind=kind, batch_size=size, split=split, advance=advance
        )
    stored.save(file, table)
    return Evaluation(version, predictor, kind, table, kind.records(table, dataset), split)


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
        lambda weights: candidate.weighted(weights)[rule.metric],
        lambda weights: other.weighted(weights)[rule.metric],
        images=len(candidate.ids),
        margin=rule.margin,
        confidence=rule.confidence,
        resamples=rule.resamples,
        seed=rule.seed,
        mode=candidate.kind.mode(rule.metric),
    )
    verdict = bootstrap.decide(comparison, rule.margin)
    where = {"promoted": "above", "rejected": "below", "undecided": "on both sides of"}[verdict]
    figure = f"{candidate.split.capitalize()} {rule.metric}"
    reason = (
        f"{figure} of {comparison.candidate:.4f} against {comparison.champion:.4f} of "
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
        "evaluate_precision": outcome.candidate.predictor.precision,
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
    first = report.class_figures(dataset, outcome)
    per_class = {
        f"test/{key}/{name}": value for key, by in first.items() for name, value in by.items()
    }
    run.log_metrics({**figures, **per_class}, step=0)
    for file in report.main_files(folder):
        run.log_artifact(file)
