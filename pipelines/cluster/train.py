"""Ray Train around a generator of epochs: in this process, or in real workers that may die."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import segcore
from pipelines.cluster import session
from pipelines.cluster.shared import check_shared
from pipelines.errors import ClusterError, TrainingFailedError
from pipelines.mirror import Mirror
from pipelines.params import Params, Workers
from pipelines.training import ending, failure
from pipelines.training.run_state import Best, RunState
from segcore.errors import SegcoreError

TrainWorker = Callable[[Params, Path | str, Path, dict[str, Any] | None], Iterator["segcore.Epoch"]]


class WorkerEndedError(Exception):
    """A worker's node is taken away; for Ray, which starts the workers again."""


@dataclass(frozen=True)
class Job:
    """What each worker is given.

    Args:
        worker: (params, shards, folder of the run, checkpoint to resume from or None) -> epochs.
        params: of the run.
        shards: absolute path, or address.
        state: of the run.
    """

    worker: TrainWorker
    params: Params
    shards: Path | str
    state: RunState


def run(worker: TrainWorker, params: Params, shards: Path | str, *, state: RunState) -> Best:
    """Train, resuming what an earlier process left in `state`, and return the best weights.

    One process is used where no more can help (`cluster.num_workers: auto`, at most one GPU): this
    one, without Ray, and an error is raised as it is. Else Ray starts workers, and again those that
    die, from the newest checkpoint, up to `cluster.max_failures` times; an error that the user can
    mend is raised here as it was there, without another try. Where `cluster.num_workers` is a
    range, the group has the size that there is room for, and grows when nodes are added.

    Args:
        worker: the same code in every worker; knows nothing of Ray.
        params: of the run.
        shards: of the dataset: an absolute folder, or an address.
        state: of the run, in a folder that every node sees.

    Raises:
        ClusterError: more workers than the cluster has processors or GPUs, a node does not see the
            shards, or the cluster is lost.
        TrainingFailedError: workers failed more often than allowed.
        SegcoreError: of a worker.
    """
    failure.clear(state.mirror)
    job = Job(worker, params, shards, state)
    with ExitStack() as stack:
        sizes, resources = _plan(params, stack)
        stack.enter_context(ending.checkpoint_first(state.mirror))
        if sizes:
            check_shared({"data.root": shards})
            fit_group(job, sizes, use_gpu=resources.gpus > 0)
        else:
            _alone(job)
    return state.best()


def _alone(job: Job) -> None:
    """Train in this process, where Ray, which takes seconds to import, has nothing to do."""
    with job.state.claim():
        for epoch in job.worker(job.params, job.shards, job.state.folder, job.state.resume()):
            job.state.keep(epoch, epoch.state())
        job.state.finish()


def fewest_workers(params: Params) -> int:
    """The smallest group of workers that params allow; 1 for auto.

    Raises:
        OptionError: no size of `cluster.num_workers` shares `train.batch_size` evenly.
    """
    wanted = params.cluster.num_workers
    return 1 if wanted == "auto" else _sizes(wanted, params)[0]


def _sizes(wanted: int | Workers, params: Params) -> tuple[int, ...]:
    """The sizes that a group of workers may have, smallest first."""
    return (wanted,) if isinstance(wanted, int) else wanted.sizes(params.train.batch_size)


def _plan(params: Params, stack: ExitStack) -> tuple[tuple[int, ...], session.Resources]:
    """Sizes that the group may have (none: this process), and the cluster, entered if needed."""
    wanted = params.cluster.num_workers
    resources = session.local_resources()
    local = session.address(params.cluster) == "local"
    total = resources if local else stack.enter_context(session.connect(params.cluster))
    if wanted == "auto" and total.gpus <= (1 if local else min(resources.gpus, 1)):
        return (), resources
    sizes = _sizes(total.gpus if wanted == "auto" else wanted, params)
    session.check_room(sizes[0], params.cluster, total)
    return sizes, stack.enter_context(session.connect(params.cluster)) if local else total


def fit_group(job: Job, sizes: tuple[int, ...], *, use_gpu: bool) -> None:
    """Train in workers of Ray, which is connected.

    Args:
        job: of each worker.
        sizes: that the group may have, smallest first.
        use_gpu: whether each worker has a GPU.

    Raises:
        ClusterError, TrainingFailedError, SegcoreError: as of `run`.
    """
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError as RayTrainingError

    settings = job.params.cluster
    try:
        _trainer(job, sizes, use_gpu=use_gpu).fit()
    except RayTrainingError as error:
        if (known := failure.read(job.state.mirror)) is not None:
            raise known from error
        raise TrainingFailedError(
            f"training failed more than cluster.max_failures {settings.max_failures} times: "
            f"{_cause(error)}. The newest checkpoint is in {job.state.folder}; the same command "
            "goes on from there"
        ) from error
    except RayError as error:
        raise ClusterError(
            f"Ray lost the process that controls training ({str(error).splitlines()[0]}): the "
            f"newest checkpoint is in {job.state.folder}; the same command goes on from there"
        ) from error


def _trainer(job: Job, sizes: tuple[int, ...], *, use_gpu: bool) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from pipelines.cluster.backend import NodeTorchConfig
    from pipelines.cluster.lean import trainer_class

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    settings = job.params.cluster
    trainer = trainer_class()(
        _work,
        train_loop_config={"job": job},
        torch_config=NodeTorchConfig(
            backend=None if settings.backend == "auto" else settings.backend
        ),
        scaling_config=ScalingConfig(
            num_workers=sizes[0] if len(sizes) == 1 else (sizes[0], sizes[-1]),
            use_gpu=use_gpu,
            resources_per_worker={"CPU": settings.cpus_per_worker, "GPU": int(use_gpu)},
        ),
        run_config=RunConfig(
            # The run's own folder, so that its checkpoints are Ray's without a copy.
            name=job.state.folder.name,
            **ray_storage(job.state.mirror),
            failure_config=FailureConfig(max_failures=settings.max_failures),
        ),
    )
    trainer.sizes = sizes
    return trainer


def ray_storage(run: Mirror) -> dict[str, Any]:
    """Options of Ray's RunConfig for the folder above a run's own, in a bucket or on a disk."""
    if run.place is None:
        return {"storage_path": str(run.folder.parent)}
    parent = run.place.key.rpartition("/")[0]
    return {"storage_path": parent, "storage_filesystem": run.place.filesystem}


def _work(config: dict[str, Any]) -> None:
    """One worker; an error that the user can mend is left in the run's folder for the driver."""
    job: Job = config["job"]
    job.state.folder.mkdir(parents=True, exist_ok=True)
    if (known := failure.read(job.state.mirror)) is not None:
        raise known  # of an earlier try: a Ray that `lean` does not know has started another
    try:
        _train(job)
    except SegcoreError as error:
        failure.write(job.state.mirror, error)
        raise


def _train(job: Job) -> None:
    """Epochs into the checkpoint store, and word of each to Ray."""
    import ray.train
    from ray.train import Checkpoint, CheckpointUploadMode

    from segcore.engine.distributed import check_group, gather

    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    last = True
    with job.state.claim() if rank == 0 else nullcontext():
        gather(None)  # nobody looks for the newest checkpoint while an earlier writer lives
        for epoch in job.worker(job.params, job.shards, job.state.folder, job.state.resume()):
            state, kept, last = epoch.state(), None, epoch.last
            check_group(size)  # Ray takes it away when a worker has died, at whatever point
            if rank == 0:
                job.state.keep(epoch, state)
                if not job.state.mirror.is_remote:  # there it may not have arrived yet
                    kept = Checkpoint.from_directory(job.state.checkpoints.folder)
            ray.train.report(
                {"epoch": epoch.number, "step": epoch.step, **epoch.metrics},
                checkpoint=kept,
                checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
            )
        job.state.finish()
    if not last and not ending.of_driver(job.state.mirror):
        raise WorkerEndedError("a worker was told to end (SIGTERM); its checkpoint is written")


def _cause(error: BaseException) -> str:
    failures = getattr(error, "worker_failures", None) or {}
    return "; ".join(f"worker {rank}: {failure}" for rank, failure in failures.items()) or str(
        error
    )
