"""Ray Train around a generator of epochs: in this process, or in real workers that may die."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import segcore
from pipelines.cluster import session
from pipelines.errors import TrainingFailedError
from pipelines.params import Params
from pipelines.training import failure
from pipelines.training.run_state import Best, RunState
from segcore.errors import SegcoreError

TrainWorker = Callable[[Params, Path, Path, dict[str, Any] | None], Iterator["segcore.Epoch"]]


@dataclass(frozen=True)
class Job:
    """What each worker is given.

    Args:
        worker: (params, shards, folder of the run, checkpoint to resume from or None) -> epochs.
        params: of the run.
        shards: absolute path.
        state: of the run.
    """

    worker: TrainWorker
    params: Params
    shards: Path
    state: RunState


def run(worker: TrainWorker, params: Params, shards: Path, *, state: RunState) -> Best:
    """Train, resuming what an earlier process left in `state`, and return the best weights.

    One process is used where no more can help (`cluster.num_workers: auto`, at most one GPU): this
    one, without Ray, and an error is raised as it is. Else Ray starts workers, and again those that
    die, from the newest checkpoint, up to `cluster.max_failures` times; an error that the user can
    mend is raised here as it was there, without another try.

    Args:
        worker: the same code in every worker; knows nothing of Ray.
        params: of the run.
        shards: folder of the dataset; absolute.
        state: of the run, in a folder that every node sees.

    Raises:
        ClusterError: more workers than the cluster has processors or GPUs.
        TrainingFailedError: workers failed more often than allowed.
        SegcoreError: of a worker.
    """
    failure.clear(state.folder)
    job = Job(worker, params, shards, state)
    with ExitStack() as stack:
        workers, resources = _plan(params, stack)
        if workers:
            _fit(job, workers, use_gpu=resources.gpus > 0)
        else:
            _alone(job)
    return state.best()


def _alone(job: Job) -> None:
    """Train in this process, where Ray, which takes seconds to import, has nothing to do."""
    for epoch in job.worker(job.params, job.shards, job.state.folder, job.state.resume()):
        job.state.keep(epoch, epoch.state())


def _plan(params: Params, stack: ExitStack) -> tuple[int, session.Resources]:
    """Number of workers (0: this process) and the cluster, which is entered if it is needed."""
    wanted = params.cluster.num_workers
    resources = session.local_resources()
    if session.address(params.cluster) == "local":
        workers = resources.gpus if wanted == "auto" else wanted
        if wanted == "auto" and workers <= 1:
            return 0, resources
        session.check_room(workers, params.cluster, resources)
        return workers, stack.enter_context(session.connect(params.cluster))
    total = stack.enter_context(session.connect(params.cluster))
    workers = total.gpus if wanted == "auto" else wanted
    if wanted == "auto" and workers <= resources.gpus <= 1:
        return 0, resources
    session.check_room(workers, params.cluster, total)
    return workers, total


def _fit(job: Job, workers: int, *, use_gpu: bool) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train import TrainingFailedError as RayError

    from pipelines.cluster.lean import trainer_class

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    settings = job.params.cluster
    trainer = trainer_class()(
        _work,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": settings.cpus_per_worker, "GPU": int(use_gpu)},
        ),
        run_config=RunConfig(
            # The run's own folder, so that its checkpoints are Ray's without a copy.
            name=job.state.folder.name,
            storage_path=str(job.state.folder.parent),
            failure_config=FailureConfig(max_failures=settings.max_failures),
        ),
    )
    try:
        trainer.fit()
    except RayError as error:
        if (known := failure.read(job.state.folder)) is not None:
            raise known from error
        raise TrainingFailedError(
            f"training failed more than cluster.max_failures {settings.max_failures} times: "
            f"{_cause(error)}. The newest checkpoint is in {job.state.folder}; the same command "
            "goes on from there"
        ) from error


def _work(config: dict[str, Any]) -> None:
    """One worker; an error that the user can mend is left in the run's folder for the driver."""
    job: Job = config["job"]
    if (known := failure.read(job.state.folder)) is not None:
        raise known  # of an earlier try: a Ray that `lean` does not know has started another
    try:
        _train(job)
    except SegcoreError as error:
        failure.write(job.state.folder, error)
        raise


def _train(job: Job) -> None:
    """Epochs into the checkpoint store, and word of each to Ray."""
    import ray.train
    from ray.train import Checkpoint, CheckpointUploadMode

    rank = ray.train.get_context().get_world_rank()
    for epoch in job.worker(job.params, job.shards, job.state.folder, job.state.resume()):
        state = epoch.state()
        kept = None
        if rank == 0:
            job.state.keep(epoch, state)
            kept = Checkpoint.from_directory(job.state.checkpoints.folder)
        ray.train.report(
            {"epoch": epoch.number, "step": epoch.step, **epoch.metrics},
            checkpoint=kept,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )


def _cause(error: BaseException) -> str:
    failures = getattr(error, "worker_failures", None) or {}
    return "; ".join(f"worker {rank}: {failure}" for rank, failure in failures.items()) or str(
        error
    )
