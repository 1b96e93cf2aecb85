"""Ray for the length of a block: started here or joined, checked, and always left again."""

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType

from pipelines.cluster import head
from pipelines.cluster.local_head import lean_head
from pipelines.cluster.shared import check_shared
from pipelines.errors import ClusterError
from pipelines.params import ClusterParams
from pipelines.storage import absolute, scratch
from segcore.data.address import is_remote

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the process of a submitted job
OBJECT_STORE_BYTES = 200 * 2**20
START_ATTEMPTS = 3
ANSWER_S = 5.0
Handler = Callable[[int, FrameType | None], None]
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # workers are the work: at Ray's 15 any other program starves them
    # One process less to start, and report() that does not wait two seconds.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Ray's advice on topics that are settled here.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A trial that ends by an error of its values has no figures; others are checked where they are.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@dataclass(frozen=True)
class Resources:
    """What a cluster has in all.

    Args:
        cpus: processors.
        gpus: accelerators.
        nodes: processors of each node; () for one node, which has them all.
    """

    cpus: int
    gpus: int
    nodes: tuple[int, ...] = ()

    def room(self, cpus: int) -> int:
        """Processes of so many processors that fit: the processors of one are on one node."""
        return sum(node // cpus for node in self.nodes or (self.cpus,))


def address(cluster: ClusterParams) -> str:
    """Where Ray is: "local" starts it here, except inside a submitted job, which has a cluster."""
    if cluster.address == "local" and JOB_VARIABLE in os.environ:
        return "auto"
    return cluster.address


def local_resources() -> Resources:
    """What this machine gives to this process."""
    import torch

    return Resources(len(os.sched_getaffinity(0)), torch.cuda.device_count())


@contextmanager
def connect(cluster: ClusterParams, *, slots: int | None = None) -> Iterator[Resources]:
    """Start or join Ray, and leave it however the block ends.

    Args:
        cluster: where Ray runs.
        slots: processes that will work at once, where Ray is started here: it then starts so many
            with itself, and counts each as one processor. None: as many as there are processors.

    Yields:
        What the cluster, or this machine, has in all.

    Raises:
        ClusterError: no cluster answers at `cluster.address`, or it has nodes that do not see
            `cluster.storage`.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    where = address(cluster)
    if where == "local":
        _own_token(cluster)
    elif ":" in where:
        _probe(where)
    import ray  # reads the environment when it is imported

    with _terminable() as on_term, head.watched() as watch:
        try:
            _start(where, on_term, slots)
            watch.begin(ray.get_runtime_context().gcs_address)
            check_shared({"cluster.storage": storage_of(cluster)})
            total = ray.cluster_resources()
            alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            nodes = tuple(int(node.get("CPU", 0)) for node in alive)
            found = Resources(int(total.get("CPU", 0)), int(total.get("GPU", 0)), nodes)
            yield local_resources() if slots and where == "local" else found
        finally:
            if not watch.lost:
                ray.shutdown()


def storage_of(cluster: ClusterParams) -> str:
    """`cluster.storage` as every node takes it."""
    storage = cluster.storage
    return storage if is_remote(storage) else str(absolute(storage))


@contextmanager
def _terminable() -> Iterator[Handler | None]:
    """Give the handler with which SIGTERM ends the block as it would without Ray.

    Ray puts its own handler in place, which kills the process, and turns what another handler
    raises while Ray waits into an exit with code 1.
    """
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    stage = signal.getsignal(signal.SIGTERM)
    ended: list[BaseException] = []

    def terminate(signum: int, frame: FrameType | None) -> None:
        try:
            if callable(stage):
                stage(signum, frame)
            raise SystemExit(128 + signum)
        except BaseException as error:
            ended.append(error)
            raise

    try:
        yield terminate
    except SystemExit as error:
        raise ended[0] if ended else error from None
    finally:
        signal.signal(signal.SIGTERM, stage)


def _start(where: str, on_term: Handler | None, slots: int | None) -> None:
    import ray

    local = where == "local"
    options = {
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
        "num_cpus": slots,
    }
    for attempt in range(START_ATTEMPTS):
        try:
            with lean_head() if local else nullcontext():
                ray.init(
                    address=where,
                    logging_level=logging.WARNING,
                    log_to_driver=False,  # the driver follows the run's own records
                    **(options if local else {}),
                )
            if on_term:
                signal.signal(signal.SIGTERM, on_term)
            return
        except Exception as error:  # Ray raises many kinds here, bare Exception among them
            ray.shutdown()
            # Ray gives a node 30 s to start, which a busy machine may exceed.
            if local and "timed out" in str(error) and attempt + 1 < START_ATTEMPTS:
                continue
            raise _no_cluster(where, error) from error


def _probe(where: str) -> None:
    """Ask whether anything listens at host:port; Ray itself waits for minutes."""
    host, _, port = where.rpartition("//")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(where, error) from error


def _no_cluster(where: str, error: Exception) -> ClusterError:
    way = "start one by `ray start --head`, or set cluster.address to local"
    if where == "local":
        way = "close other programs and run again"
    return ClusterError(f"no Ray cluster at cluster.address {where!r} ({error}): {way}")


def check_room(workers: int, cluster: ClusterParams, resources: Resources) -> None:
    """Refuse more workers than there are processors for, rather than wait for them forever.

    Raises:
        ClusterError: names what is asked for and what is there.
    """
    each = cluster.cpus_per_worker
    fits = resources.room(each)
    if workers > fits:
        there = f"{resources.cpus} are there"
        if len(resources.nodes) > 1:
            there += (
                f" ({' + '.join(map(str, resources.nodes))}, and those of a worker on one node)"
            )
        raise ClusterError(
            f"cluster.num_workers {workers} with cluster.cpus_per_worker {each} need "
            f"{workers * each} CPUs, {there}: set cluster.num_workers to {max(1, fits)} or auto"
            + ("" if fits else ", cluster.cpus_per_worker to less")
            + ", or add nodes (cluster.address)"
        )
    if cluster.backend == "nccl" and not resources.gpus:
        raise ClusterError(
            "cluster.backend is nccl, and there are no GPUs: set it to auto or gloo, or add nodes "
            "with GPUs (cluster.address)"
        )
    if 0 < resources.gpus < workers:
        raise ClusterError(
            f"cluster.num_workers {workers} need {workers} GPUs, {resources.gpus} are there: set "
            "cluster.num_workers to auto, or CUDA_VISIBLE_DEVICES to nothing to use processors"
        )


def _own_token(cluster: ClusterParams) -> None:
    """Give the local cluster a token of its own, so that Ray writes none to the home folder."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    file = scratch(cluster.storage) / "ray_token"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_file():
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = os.fspath(file)
