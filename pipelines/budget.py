"""What masks are worth: models trained on shares of them, with and without the pictures left over.

The same recipe and the same minutes for each, all scored on the same test pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import segcore
from pipelines import storage
from pipelines.aside import open_model, share_minutes, train_aside
from pipelines.cluster import train as ray_train
from pipelines.evaluation import budget_page
from pipelines.evaluation.budget_page import Answer, Point, answer_of
from pipelines.params import Params
from pipelines.params.planned import load_planned
from pipelines.progress import progress
from pipelines.scoring.bootstrap import resampled
from pipelines.scoring.records import record
from pipelines.sources import create_dataset, show_progress
from pipelines.train import BEST, SHARDS, fit_worker, tuned
from pipelines.training.build import check, predicted_task, with_goal
from segcore.data.few_labels import hide_labels
from segcore.data.prepare import validate, write
from segcore.data.shards import ShardedDataset
from segcore.errors import OptionError
from segcore.machine import choose_batch_size, describe_machine
from segcore.tasks import Kind, get_kind
from segcore.tasks.judging import judging

BUDGET = Path("outputs/budget")
ASKER = "budget"
ALONE, WITH_REST = "masks alone", "with the other pictures"
TASK_WITH_REST = "semi_supervised"  # any semantic architecture, by the mean teacher


@dataclass(frozen=True)
class Setting:
    """One model to train.

    Args:
        fraction: of the training pictures that keep their masks.
        method: ALONE or WITH_REST.
    """

    fraction: float
    method: str


def budget(
    *, fractions: Sequence[float], with_rest: bool, minutes: float | None, more: int
) -> Answer:
    """Train on each share of the masks, and say what more masks would bring.

    What an interrupted call has trained is not trained again; page, picture and table in
    outputs/budget have the points so far.

    Args:
        fractions: shares of the training pictures that keep their masks, in 0..1.
        with_rest: train also on masks and the pictures without, by the mean teacher.
        minutes: of training, shared by the models; None: each as the stage train.
        more: masks of which the answer speaks.

    Raises:
        OptionError: a fraction or the minutes are out of range, or params hide masks already.
        DataError: test and val have no labels.
    """
    params, _ = tuned(load_planned(), storage.absolute(BEST))
    settings = settings_of(params, fractions, with_rest=with_rest)
    dataset = segcore.open_shards(storage.absolute(SHARDS / params.data.name))
    params = share_minutes(with_goal(params, dataset), len(settings), minutes)
    check(params, dataset, workers=ray_train.fewest_workers(params))
    kind, points = get_kind(predicted_task(params, dataset)), list[Point]()
    rule = params.evaluate.promote
    shards = prepared(params, dataset, sorted({setting.fraction for setting in settings}))
    for setting in settings:
        points.append(measure(params, shards[setting.fraction], setting, kind))
        answer = answer_of(points, more=more, name=kind.headline_label, rule=rule)
        budget_page.write(storage.absolute(BUDGET), dataset.name, answer)
    return answer


def settings_of(params: Params, fractions: Sequence[float], *, with_rest: bool) -> list[Setting]:
    """The models to train, those on few masks first.

    Raises:
        OptionError: a fraction is out of range, or params hide masks already.
    """
    data = params.data
    if data.labelled_fraction is not None or data.labelled_per_class is not None:
        raise OptionError(
            f"data.labelled_fraction is {data.labelled_fraction} and data.labelled_per_class is "
            f"{data.labelled_per_class}: set both to null and run prepare; the budget hides masks "
            "itself"
        )
    wrong = [fraction for fraction in fractions if not 0 < fraction <= 1]
    if wrong or not fractions:
        raise OptionError(
            f"fractions are {list(fractions)}: give shares of the masks above 0, at most 1"
        )
    methods = (ALONE, WITH_REST) if with_rest else (ALONE,)
    return [
        Setting(fraction, method)
        for fraction in sorted(set(fractions))
        for method in methods
        if fraction < 1 or method == ALONE
    ]


def prepared(
    params: Params, dataset: ShardedDataset, fractions: Sequence[float]
) -> dict[float, Path]:
    """Folders of shards in which only a fraction of the training pictures has masks."""
    seed = params.data.labelled_seed
    place = storage.scratch(params.cluster.storage) / ASKER
    found = {
        fraction: place / f"shards-{dataset.digest[:16]}-{seed}-{fraction:g}"
        for fraction in fractions
        if fraction < 1
    }
    missing = {fraction: path for fraction, path in found.items() if not path.is_dir()}
    if missing:
        with show_progress() as progress:
            whole = validate(create_dataset(params), size=params.data.size, progress=progress)
        whole.check(params.data.max_rejected)
        for fraction, path in missing.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(
                hide_labels(whole, fraction=fraction, seed=seed),
                path,
                image_encoding=params.data.image_encoding,
                rows_per_shard=params.data.rows_per_shard,
            )
    return {**found, 1.0: dataset.path}


def measure(params: Params, shards: Path, setting: Setting, kind: Kind) -> Point:
    """Train one model, unless it is there, and score it on what judges."""
    if setting.method == WITH_REST:
        params = params.override({"data.task": TASK_WITH_REST})
    dataset, rule = segcore.open_shards(shards), params.evaluate.promote
    labels = len(dataset.split("train"))
    said = f"{labels} pictures with masks ({setting.fraction:.0%}), {setting.method}"
    package = train_aside(
        fit_worker, params, dataset, asker=ASKER, inputs={"method": setting.method}, said=said
    )
    (split, rows), machine = judging(dataset, kind), describe_machine()
    size = choose_batch_size(params.evaluate.batch_size, machine)
    predictor = open_model(params, package)
    with progress("score", len(rows)) as advance:
        table = record(
            predictor, dataset, rows, kind=kind, batch_size=size, split=split, advance=advance
        )
    records = kind.records(table, dataset)
    drawn = resampled(
        lambda weights: kind.figures(records, weights)[kind.headline],
        images=len(rows),
        resamples=rule.resamples,
        seed=rule.seed,
    )
    whole = kind.figures(records, np.ones((1, len(rows))))[kind.headline]
    return Point(setting.fraction, labels, setting.method, float(whole[0]), drawn)
