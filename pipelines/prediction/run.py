"""Images in; files of predictions and a manifest out: only what is missing."""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from pipelines.cluster import session
from pipelines.mirror import Mirror
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
from pipelines.storage import scratch
from segcore.data.address import is_remote
from segcore.data.place import Place
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
    out: Path | str
    drift: Drift | None = None

    @property
    def exit_code(self) -> int:
        """0, or 3 when some inputs failed."""
        return SOME_FAILED if self.failed else 0

    def __str__(self) -> str:
        parts = [f"{self.done} predicted", f"{self.kept} already there"]
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        parts += [f"{self.skipped} skipped"] if self.skipped else []
        where = self.out if is_remote(self.out) else os.path.relpath(self.out)
        line = f"predict: {', '.join(parts)} in {self.seconds:.1f} s -> {where}/{manifest.FILE}"
        return line if self.drift is None else f"{line}\n{self.drift}"


def predict(
    params: Params,
    *,
    images: str,
    model: str,
    out: Path | str,
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
        model: models:/name@alias, models:/name/version, or the folder of a model package, also
            s3:// address.
        out: folder, or s3:// address, of masks/ (or what else the model's kind of task writes),
            overlays/ and manifest.parquet.
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
    shared = _results_folder(params, out)
    inputs = find_inputs(images, exclude=shared.folder)
    package, facts = locate(params, model)
    job = make_job(params, package=package, out=shared, overlays=overlays, **facts)
    if engine != TORCH:
        job = exported(params, job, engine)
    if journal.exists(job.out):  # an earlier job was killed
        sweep(job.out, {output.folder for output in job.kind.outputs(job.kind.extras)})
    shared.pull(manifest.FILE, exact=True)
    known = manifest.read(job.out)
    rows = {} if prune else {path: row for path, row in known.items() if _is_there(shared, row)}
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


def _is_there(out: Mirror, row: Row) -> bool:
    return bool(row.mask_path) and out.has(row.mask_path)


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
                _save_manifest(job, rows)
                saved = time.monotonic()
                took = saved - start
    _save_manifest(job, rows)
    journal.clear(job.out)
    return kept


def _save_manifest(job: Job, rows: dict[str, Row]) -> None:
    manifest.write(job.out, rows.values(), job.kind.row_columns)
    job.shared.push(manifest.FILE)


def _results_folder(params: Params, out: Path | str) -> Mirror:
    """Where results go: a folder, or a bucket with a local one for what is not finished."""
    if not is_remote(out):
        return Mirror(Path(out))
    place = Place(out)
    name = hashlib.sha256(place.address.encode()).hexdigest()[:16]
    folder = scratch(params.cluster.storage) / "predictions" / name
    folder.mkdir(parents=True, exist_ok=True)
    return Mirror(folder, place)


def _results(params: Params, job: Job, work: Sequence[tuple[Input, Row | None]]) -> Iterator[Row]:
    new = sum(
        known is None or not job.made(item, known) or not job.is_written(item)
        for item, known in work
    )
    if new and (new >= params.predict.ray_min_images or session.address(params.cluster) != "local"):
        from pipelines.cluster.data import map_batches

        share = min(1.0, params.cluster.cpus_per_worker / describe_machine().cores)
        storage = params.cluster.storage
        if is_remote(storage):
            place = Place(storage) / f"packages/{job.digest[:16]}"
            job = replace(job, package_place=place)
            Mirror(job.package, place).push_new("")
        make_worker = partial(Worker, replace(job, memory_share=share))
        folders = {"the folder of results": job.place.address if job.place else job.out}
        folders |= {} if job.package_place else {"the model package": job.package}
        folders |= {"the exported model": job.exported.parent} if job.exported else {}
        size = max(job.batch_size, ITEMS_PER_CALL)
        yield from map_batches(
            work, make_worker, batch_size=size, cluster=params.cluster, shared=folders
        )
        return
    yield from Worker(job, best_device()).stream(work)


def _finish(job: Job, rows: Iterable[Row]) -> Drift | None:
    """What the whole job becomes, of every row that this model made."""
    made = [row for row in rows if row.status == "ok" and row.model_digest == job.digest]
    job.kind.write_job(job.out, (manifest.record(row, {}) for row in made), job.spec)
    found = drift.compare(made, job.spec)
    if found is not None:
        drift.write(found, job.out)
    for file in job.out.glob("*"):
        if file.is_file():
            job.shared.push(file.name)
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
        for name in job.shared.names(output.folder):
            if PurePosixPath(name).with_suffix("").as_posix() not in names:
                job.shared.remove(f"{output.folder}/{name}")
