"""Images in; files of predictions and a manifest out: only what is missing."""

import hashlib
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

from pipelines.cluster import session
from pipelines.mirror import Mirror
from pipelines.params import Params
from pipelines.prediction import drift, journal, manifest
from pipelines.prediction.drift import Drift
from pipelines.prediction.files import sweep
from pipelines.prediction.index import Index
from pipelines.prediction.inputs import find_inputs
from pipelines.prediction.job import Job, make_job
from pipelines.prediction.located import exported, locate
from pipelines.prediction.manifest import TORCH, Row
from pipelines.prediction.streams import choose_streams
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
RAY_MIN_IMAGES = 500  # Ray's start costs as much as some hundred images
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

    In this process, which uses all cores; by Ray Data's actors from `predict.ray_min_images` on and
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
    next(item for item in find_inputs(images, exclude=shared.folder) if not item.skip)  # or says so
    package, facts = locate(params, model)
    job = make_job(params, package=package, out=shared, overlays=overlays, **facts)
    if engine != TORCH:
        job = exported(params, job, engine)
    if journal.exists(job.out):  # an earlier job was killed
        sweep(job.out, {output.folder for output in job.kind.outputs(job.kind.extras)})
    shared.pull(manifest.FILE, exact=True)
    with (
        tempfile.TemporaryDirectory(dir=_local_folder(params)) as folder,
        closing(Index(Path(folder))) as index,
    ):
        index.add_inputs(find_inputs(images, exclude=shared.folder))
        index.add_known(manifest.stream(job.out), lambda row: not prune and _is_there(shared, row))
        skipped = index.add_skipped(lambda item: job.row(item, "skipped", item.skip))
        counts, failed = _work(params, job, index)
        if prune:
            _prune(job, index)
        seen = _finish(job, index)
    return Summary(
        done=counts["done"],
        kept=counts["kept"],
        failed=failed,
        skipped=skipped,
        seconds=time.monotonic() - start,
        out=out,
        drift=seen,
    )


def _local_folder(params: Params) -> Path:
    folder = scratch(params.cluster.storage)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _is_there(out: Mirror, row: Row) -> bool:
    return bool(row.mask_path) and out.has(row.mask_path)


def _work(params: Params, job: Job, index: Index) -> tuple[Counter[str], list[Row]]:
    """Run the workers, saving the manifest as it grows.

    Returns:
        counts of results done and kept, and the rows that failed.
    """
    counts: Counter[str] = Counter()
    failed = []
    saved, took = float("-inf"), 0.0  # the first row is saved at once
    with progress("predict", index.to_do) as advance:
        for row in _results(params, job, index):
            kept = index.put(row)
            if row.status == "ok":
                counts["kept" if kept else "done"] += 1
            else:
                failed.append(row)
            advance(1)
            if time.monotonic() - saved > max(SAVE_S, SAVE_EVERY * took):
                start = time.monotonic()
                _save_manifest(job, index)
                saved = time.monotonic()
                took = saved - start
    _save_manifest(job, index)
    journal.clear(job.out)
    return counts, sorted(failed, key=lambda row: row.path)


def ray_min_images(params: Params) -> int | None:
    """From how many images on Ray Data predicts them on this machine; None: never."""
    asked = params.predict.ray_min_images
    if asked != "auto":
        return asked
    return RAY_MIN_IMAGES if describe_machine().accelerators > 1 else None


def _save_manifest(job: Job, index: Index) -> None:
    manifest.write(job.out, index.rows(), job.columns)
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


def _results(params: Params, job: Job, index: Index) -> Iterator[Row]:
    news = (
        1
        for item, known in index.work()
        if known is None or not job.made(item, known) or not job.is_written(item)
    )
    least = ray_min_images(params)
    new = sum(islice(news, least or 1))
    alone = session.address(params.cluster) == "local" and (least is None or new < least)
    if new and not alone:
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
        size = max(job.images_per_call, ITEMS_PER_CALL)
        yield from map_batches(
            index.work(), make_worker, batch_size=size, cluster=params.cluster, shared=folders
        )
        return
    device = best_device()
    streams = choose_streams(job, device)
    job = replace(job, memory_share=1.0 / streams)
    yield from Worker(job, device, streams=streams).stream(index.work())


def _made(job: Job, index: Index) -> Iterator[Row]:
    return (row for row in index.rows() if row.status == "ok" and row.model_digest == job.digest)


def _finish(job: Job, index: Index) -> Drift | None:
    """What the whole job becomes, of every row that this model made."""
    records = (manifest.record(row, {}) for row in _made(job, index))
    job.kind.write_job(job.out, records, job.spec, job.extras)
    found = drift.compare(_made(job, index), job.spec)
    if found is not None:
        drift.write(found, job.out)
    for file in job.out.glob("*"):
        if file.is_file():
            job.shared.push(file.name)
    return found


def _prune(job: Job, index: Index) -> None:
    """Remove files of predictions that no row of the manifest tells of."""
    outputs = job.kind.outputs(job.kind.extras)
    main = outputs[0]
    for output in outputs:
        names = job.shared.names(output.folder)
        stems = (PurePosixPath(name).with_suffix("").as_posix() for name in names)
        told = index.has_mask(f"{main.folder}/{stem}{main.suffix}" for stem in stems)
        for name, is_told in zip(names, told, strict=True):
            if not is_told:
                job.shared.remove(f"{output.folder}/{name}")
