"""Which labels of the training split a model contradicts that was not trained on them.

Cross-validation: each part of the split is judged by a model that was trained on the others, by the
recipe of the stage train and with its code.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import segcore
from pipelines import storage
from pipelines.aside import open_model, share_minutes, train_aside
from pipelines.cluster import train as ray_train
from pipelines.evaluation import suspects
from pipelines.evaluation.suspects import Shown, Suspect
from pipelines.params import Params
from pipelines.params.planned import load_planned
from pipelines.progress import progress
from pipelines.train import BEST, SHARDS, fit_dataset, tuned
from pipelines.training.build import check, predicted_task, with_goal
from segcore.data.folds import FoldedDataset, fold_rows
from segcore.data.rows import decode_labelled
from segcore.data.shards import ShardedDataset
from segcore.errors import DataError, OptionError
from segcore.inference.contradictions import Judgement, calibrate
from segcore.tasks import Kind, get_kind

DOCTOR = Path("outputs/doctor")
TRAIN = "train"


@dataclass(frozen=True)
class Part:
    """A part of the training split.

    Args:
        rows: of the split.
        package: of the model that was trained on the other parts.
    """

    rows: Sequence[int]
    package: Path


def doctor(
    *, folds: int, minutes: float | None, shown: int
) -> tuple[list[Suspect], tuple[str, ...]]:
    """Train a model without each part of the training split, and rank the labels they contradict.

    What an interrupted call has trained is not trained again.

    Args:
        folds: number of parts.
        minutes: of training, shared by the models; None: those of params.yaml or the plan, or,
            where these count epochs, as many for each model.
        shown: pictures on the page.

    Returns:
        The pictures with a contradicted region, the most suspicious first, and the names of the
        classes. Page, table and summary are in outputs/doctor.

    Raises:
        OptionError: folds or minutes are out of range, or labels of this kind are not judged.
        DataError: a training picture has no label.
    """
    params, _ = tuned(load_planned(), storage.absolute(BEST))
    dataset = segcore.open_shards(storage.absolute(SHARDS / params.data.name))
    params = share_minutes(with_goal(params, dataset), folds, minutes)
    check(params, dataset, workers=ray_train.fewest_workers(params))
    kind = judging_kind(params, dataset)
    parts = [
        Part(rows, train_without(params, dataset, number=number, folds=folds))
        for number, rows in enumerate(parts_of(dataset, folds, seed=params.train.seed))
    ]
    found = examine(params, dataset, parts, kind)
    suspects.write(
        storage.absolute(DOCTOR),
        dataset,
        found,
        kind=kind,
        shown=picture(params, dataset, parts, found[:shown], kind),
        facts={"folds": folds, "model": params.model.name, "minutes": params.train.max_minutes},
    )
    return found, dataset.classes


def judging_kind(params: Params, dataset: ShardedDataset) -> Kind:
    """The kind as which the trained models predict.

    Raises:
        OptionError: it does not judge labels.
    """
    kind = get_kind(predicted_task(params, dataset))
    if not kind.judges_labels:
        raise OptionError(
            f"{kind.title} has no judgement of labels: the doctor looks at class maps; set "
            "data.task to one that has them, and model.name to auto or to one of its models"
        )
    return kind


def parts_of(dataset: ShardedDataset, folds: int, *, seed: int) -> list[list[int]]:
    """Rows of the training split in as many parts; see `fold_rows`."""
    return fold_rows(dataset.splits.get(TRAIN, 0), folds, seed=seed)


def fit_without(
    params: Params,
    shards: Path | str,
    folder: Path,
    resume: dict[str, Any] | None,
    *,
    number: int,
    folds: int,
) -> Iterator["segcore.Epoch"]:
    """Train in one worker on all parts but one; arguments as `train_worker`.

    Args:
        number: of the part that is left out.
        folds: number of parts.
    """
    whole = segcore.open_shards(shards)
    held_out = parts_of(whole, folds, seed=params.train.seed)[number]
    yield from fit_dataset(params, FoldedDataset(whole, held_out), folder, resume)


def train_without(params: Params, dataset: ShardedDataset, *, number: int, folds: int) -> Path:
    """The package of a model that was trained on all parts but one."""
    return train_aside(
        partial(fit_without, number=number, folds=folds),
        params,
        dataset,
        asker="doctor",
        inputs={"folds": folds, "part": number},
        said=f"model {number + 1} of {folds}, without the pictures that it will judge",
    )


def examine(
    params: Params, dataset: ShardedDataset, parts: Sequence[Part], kind: Kind
) -> list[Suspect]:
    """Every training picture by the model that has not seen it; those contradicted, ranked.

    Raises:
        DataError: a picture has no label.
    """
    split, targets = dataset.split(TRAIN), kind.targets(dataset)
    places: list[tuple[int, int]] = []
    judgements: list[Judgement] = []
    with progress("examine", len(split)) as advance:
        for number, part in enumerate(parts):
            predictor = open_model(params, part.package)
            for row in part.rows:
                image, label = decode_labelled(split, row, targets)
                if label is None:
                    raise DataError(
                        f"training picture {split.ids[row]} has no {targets.what}: give it one, or "
                        "move it to the split 'unlabelled'"
                    )
                places.append((row, number))
                judgements.append(kind.judge(predictor, image, label))
                advance(1)
    return suspects.rank(
        Suspect(row, split.ids[row], number, regions)
        for (row, number), regions in zip(places, calibrate(judgements), strict=True)
        if regions
    )


def picture(
    params: Params,
    dataset: ShardedDataset,
    parts: Sequence[Part],
    chosen: Sequence[Suspect],
    kind: Kind,
) -> list[Shown]:
    """The panels of some suspects, each predicted by the model that judged it."""
    split, targets = dataset.split(TRAIN), kind.targets(dataset)
    drawn: dict[int, Shown] = {}
    for number, part in enumerate(parts):
        predictor = open_model(params, part.package)
        for suspect in chosen:
            if suspect.fold == number:
                image, label = decode_labelled(split, suspect.row, targets)
                panel = kind.panel(image, label, predictor(image)[0], predictor.spec)
                drawn[suspect.row] = suspects.draw(suspect, panel)
    return [drawn[suspect.row] for suspect in chosen]
