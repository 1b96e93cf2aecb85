"""Images in; files of predictions and a manifest out: only what is missing."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipelines.cluster import session
from pipelines.params import Params
from pipelines.prediction import drift, journal, manifest
from pipelines.prediction.drift import Drift
from pipelines.prediction.files import sweep
from pipelines.prediction.inputs import Input, find_inputs
from pipelines.prediction.job import Job, make_job
from pipelines.prediction.located import exported, locate
from pipelines.prediction.manifest import TORCH, Row
from pipelines.prediction.worker import Worker
from pipelines.progress import progress
from segcore.inference.predictor import best_device
from segcore.machine import describe_machine

SOME_FAILED = 3
SAVE_S = 10.0
SAVE_EVERY = 20  # times as long as the last took: at most a twentieth of the time goes into it
ITEMS_PER_CALL = 8  # of an actor: reading and writing overlap within a call


@dataclass(frozen=True)
class Summary:
    """What a prediction did.

    Args:
        done: inputs predicted now.
        kept: inputs whose files were there already.
        failed: rows with status "error".
        skipped: files that are no images.
        seconds: of the whole run.
        out: folder of the results.
        drift: how the pictures differ from the training set; None where that is not known.
    """

    done: int
    kept: int
    failed: list[Row]
    skipped: int
    seconds: float
    out: Path
    drift: Drift | None = None

    @property
    def exit_code(self) -> int:
        """0, or 3 when some inputs failed."""
        return SOME_FAILED if self.failed else 0

    def __str__(self) -> str:
        parts = [f"{self.done} predicted", f"{self.kept} already there"]
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        parts += [f"{self.skipped} skipped"] if self.skipped else []
        where = os.path.relpath(self.out)
        line = f"predict: {', '.join(parts)} in {self.seconds:.1f} s -> {where}/{manifest.FILE}"
        return line if self.drift is None else f"{line}\n{self.drift}"


def predict(
    params: Params,
    *,
    images: str,
    model: str,
    out: Path,
    overlays: bool,
    prune: bool = False,
    engine: str = TORCH,
) -> Summary:
    """Predict every input that has no valid result yet.

    In this process for few images; by Ray Data's actors from `predict.ray_min_images` on and
    where `cluster.address` names a cluster. Killed at any moment and run again, it goes on.

    Args:
        params: `predict`, `cluster` and `tracking` are used.
        images: folder, glob, list file, image, folder of shards, or s3:// address.
        model: models:/name@alias, models:/name/version, or the folder of a model package.
        out: folder of masks/ (or what else the model's kind of task writes), overlays/ and
            manifest.parquet.
        overlays: also write overlays/.
        prune: remove rows and files of inputs that are no longer given.
        engine: what runs the model: "torch", or a key of `segcore.export.ENGINES`, which runs the
            exported model on the CPU.

    Raises:
        ExportError: the model cannot be exported, or the engine is not installed.
        DataError: there are no inputs, or `out` is not writable.
        PackageError: the model is not a whole package.
        TrackingError: the registry has no such model.
    """
    start = time.monotonic()
    inputs = find_inputs(images, exclude=out)
    package, facts = locate(params, model)
    job = make_job(params, package=package, out=out, overlays=overlays, **facts)
    if engine != TORCH:
        job = exported(params, job, engine)
    if journal.exists(out):  # an earlier job was killed
        sweep(out, {output.folder for output in job.kind.outputs(job.kind.extras)})
    known = manifest.read(out)
    rows = {} if prune else {path: row for path, row in known.items() if _is_there(out, row)}
    rows |= {item.path: job.row(item, "skipped", item.skip) for item in inputs if item.skip}
    work = [(item, known.get(item.path)) for item in inputs if not item.skip]
    kept = _work(params, job, work, rows)
    if prune:
        _prune(job, rows.values())
    seen = _finish(job, rows.values())
    given = [rows[item.path] for item in inputs]
    return Summary(
        done=sum(row.status == "ok" for row in given) - kept,
        kept=kept,
        failed=[row for row in given if row.status == "error"],
        skipped=sum(row.status == "skipped" for row in given),
        seconds=time.monotonic() - start,
        out=out,
        drift=seen,
    )


def _is_there(out: Path, row: Row) -> bool:
    return bool(row.mask_path) and (out / row.mask_path).is_file()


def _work(
    params: Params, job: Job, work: Sequence[tuple[Input, Row | None]], rows: dict[str, Row]
) -> int:
    """Run the workers, saving the manifest as it grows; returns how many results were kept."""
    kept, saved, took = 0, float("-inf"), 0.0  # the first row is saved at once
    before = {item.path: known for item, known in work}
    with progress("predict", len(work)) as advance:
        for row in _results(params, job, work):
            kept += row == before[row.path]
            rows[row.path] = row
            advance(1)
            if time.monotonic() - saved > max(SAVE_S, SAVE_EVERY * took):
                start = time.monotonic()
                manifest.write(job.out, rows.values(), job.kind.row_columns)
                saved = time.monotonic()
                took = saved - start
    manifest.write(job.out, rows.values(), job.kind.row_columns)
    journal.clear(job.out)
    return kept


def _results(params: Params, job: Job, work: Sequence[tuple[Input, Row | None]]) -> Iterator[Row]:
    new = sum(
        known is None or not job.made(item, known) or not job.is_written(item)
        for item, known in work
    )
    if new and (new >= params.predict.ray_min_images or session.address(params.cluster) != "local"):
        from pipelines.cluster.data import map_batches

        share = min(1.0, params.cluster.cpus_per_worker / describe_machine().cores)
        make_worker = partial(Worker, replace(job, memory_share=share))
        size = max(job.batch_size, ITEMS_PER_CALL)
        yield from map_batches(work, make_worker, batch_size=size, cluster=params.cluster)
        return
    yield from Worker(job, best_device()).stream(work)


def _finish(job: Job, rows: Iterable[Row]) -> Drift | None:
    """What the whole job becomes, of every row that this model made."""
    made = [row for row in rows if row.status == "ok" and row.model_digest == job.digest]
    job.kind.write_job(job.out, (manifest.record(row, {}) for row in made), job.spec)
    found = drift.compare(made, job.spec)
    if found is not None:
        drift.write(found, job.out)
    return found


def _prune(job: Job, rows: Iterable[Row]) -> None:
    """Remove files of predictions that no row of the manifest tells of."""
    outputs = job.kind.outputs(job.kind.extras)
    main = outputs[0]
    names = {
        row.mask_path.removeprefix(f"{main.folder}/").removesuffix(main.suffix)
        for row in rows
        if row.mask_path
    }
    for output in outputs:
        for file in (job.out / output.folder).rglob("*"):
            name = file.relative_to(job.out / output.folder).with_suffix("").as_posix()
            if file.is_file() and name not in names:
                file.unlink()
