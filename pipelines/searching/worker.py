"""Training of one trial, with what is measured of it beside the figures of its epochs."""

import io
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import segcore
from pipelines.cluster.trial_facts import RECORDS
from pipelines.mirror import Mirror
from pipelines.params import Params
from pipelines.params.tune import MILLISECONDS
from pipelines.scoring.records import record
from pipelines.storage import write_atomic
from pipelines.train import fit_worker, predictor_of
from pipelines.training.build import find_kind
from segcore.tasks.judging import labelled

WARM_UPS = 2
PASSES = 10
PASSES_S = 2.0  # enough, once there were 3
MOST_RECORDS = 200


def trial_worker(
    params: Params, shards: Path | str, folder: Path, resume: dict[str, Any] | None
) -> Iterator["segcore.Epoch"]:
    """The epochs of one worker of a trial; free of Ray.

    Where `tune.metric` has milliseconds, epochs have "val/milliseconds" too; where trials are
    compared on single images, the last epoch leaves their records in RECORDS.

    Args:
        params: of the trial.
        shards: of the dataset.
        folder: of the trial.
        resume: state of a checkpoint, or None.
    """
    from segcore.engine.distributed import rank

    settings = params.tune
    is_timed = any(goal.metric == MILLISECONDS for goal in settings.objectives)
    taken_ms: float | None = None
    for epoch in fit_worker(params, shards, folder, resume):
        if epoch.complete and rank() == 0 and (is_timed or (settings.compares and epoch.last)):
            dataset = segcore.open_shards(shards)
            predictor = predictor_of(params, dataset, epoch.weights())
            if is_timed and taken_ms is None:
                taken_ms = milliseconds(predictor, dataset)
            if settings.compares and epoch.last:
                write_records(predictor, dataset, params, folder)
        if taken_ms is not None:
            epoch = replace(epoch, metrics={**epoch.metrics, f"val/{MILLISECONDS}": taken_ms})
        yield epoch


def milliseconds(predictor: Any, dataset: Any) -> float:
    """Time of one validation image of the middle size, from pixels to prediction.

    The least of a few passes: what else a machine does only adds to it.
    """
    split = dataset.split("val")
    areas = [height * width for height, width in split.sizes]
    image = split.decode(sorted(range(len(split)), key=areas.__getitem__)[len(split) // 2])[0]
    for _ in range(WARM_UPS):
        predictor([image], 1)
    taken: list[float] = []
    end = time.monotonic() + PASSES_S
    while len(taken) < PASSES and (len(taken) < 3 or time.monotonic() < end):
        start = time.perf_counter()
        predictor([image], 1)
        taken.append(1000.0 * (time.perf_counter() - start))
    return min(taken)


def write_records(predictor: Any, dataset: Any, params: Params, folder: Path) -> None:
    """Leave records of the labelled validation images, MOST_RECORDS of them at most."""
    kind = find_kind(params, dataset)
    rows = labelled(dataset, kind, "val")
    if not rows:
        return
    count = min(len(rows), MOST_RECORDS)
    chosen = [rows[index * len(rows) // count] for index in range(count)]
    size = min(params.train.batch_size, 8)
    table = record(predictor, dataset, chosen, kind=kind, batch_size=size, split="val")
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_atomic(folder / RECORDS, buffer.getvalue())
    Mirror.of(params.cluster.storage, folder).push(RECORDS)
