"""MLflow runs: one per stage, opened before any work and closed in its true state."""

import getpass
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.adapters.buffer import Buffer, replay
from pipelines.adapters.connection import Connection, connect
from pipelines.adapters.errors import TrackingError
from pipelines.adapters.storage import absolute, root
from pipelines.params import Params

if TYPE_CHECKING:
    import numpy as np

SYSTEM_METRICS_S = 5.0
BUFFERS = "tracking"  # folder of undelivered records, in cluster.storage
LONGEST_PARAM = 6000


class Run:
    """An open MLflow run. What it logs survives an outage of the server; see `Buffer`."""

    def __init__(self, connection: Connection, run_id: str, buffers: Path) -> None:
        self.id = run_id
        self.connection = connection
        self._buffers = buffers
        self._buffer = Buffer(connection.client, run_id, buffers / run_id)

    @property
    def uri(self) -> str:
        """Absolute address of the store that holds the run."""
        return self.connection.uri

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, *, time_s: float | None = None
    ) -> None:
        """Log the metrics of one step; NaN, a figure that does not exist, is left out.

        Args:
            metrics: by name; characters that MLflow does not take become "_".
            step: the epoch or the optimiser step.
            time_s: when they were measured; the same point logged twice is one point.
        """
        values = {_key(key): value for key, value in metrics.items() if value == value}
        if values:
            now = time.time() if time_s is None else time_s
            self._buffer.metrics(values, step, int(now * 1000))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log values, by dotted key, that are fixed for the whole run."""
        items = [(_key(key), str(value)[:LONGEST_PARAM]) for key, value in params.items()]
        for start in range(0, len(items), 100):
            self._buffer.append({"kind": "params", "values": dict(items[start : start + 100])})

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep a file with the run, below `folder`."""
        self._buffer.keep(Path(path), folder)

    def log_image(self, image: "np.ndarray[Any, Any]", path: str) -> None:
        """Keep a picture, uint8 [H, W, 3], as the artifact `path`, a PNG."""
        from PIL import Image

        folder, _, name = path.rpartition("/")
        home = self._buffer.folder / "pictures"
        home.mkdir(exist_ok=True)
        Image.fromarray(image).save(home / name)
        self._buffer.keep(home / name, folder)
        (home / name).unlink()

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run; None is left out."""
        values = {key: str(value) for key, value in tags.items() if value is not None}
        self._buffer.append({"kind": "tags", "values": values})

    def log_dataset(self, name: str, digest: str, *, path: Path, rows: int) -> None:
        """Record what the run read, by digest; no data is read."""
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.data.sources import LocalArtifactDatasetSource
        from mlflow.entities import DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        # MLflow keeps 36 characters of a digest.
        source = LocalArtifactDatasetSource(os.fspath(path))
        data: Any = MetaDataset(source=source, name=name, digest=digest[:36])
        tags = [InputTag("mlflow.data.context", "training"), InputTag("rows", str(rows))]
        try:
            entry = DatasetInput(data._to_mlflow_entity(), tags)
            self.connection.client.log_inputs(self.id, [entry])
        except MlflowException as error:
            raise TrackingError(f"MLflow at {self.uri} refuses the dataset: {error}") from error
        self.set_tags({"dataset_digest": digest, "dataset_name": name})

    def child(self, name: str, *, params: Mapping[str, Any], resume_id: str | None = None) -> "Run":
        """A run nested in this one; its caller closes it.

        Args:
            name: shown in MLflow.
            params: fixed values of the child.
            resume_id: a child that was interrupted and goes on.
        """
        tags = {"mlflow.parentRunId": self.id}
        run_id, fresh = _open(self.connection, name, tags, resume_id)
        child = Run(self.connection, run_id, self._buffers)
        if fresh:
            child.log_params(params)
        return child

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED and deliver what is left.

        What the store does not take is said on stderr, with where it is kept.
        """
        end_ms = int(time.time() * 1000)
        self._buffer.append({"kind": "status", "status": status, "end_ms": end_ms})
        left = self._buffer.close()
        if left:
            _say(
                f"MLflow at {self.uri} is away: {left} records of run {self.id} are not there; "
                f"they are kept in {self._buffer.folder} and sent by the next stage that runs"
            )
        for reason in self._buffer.refused:
            _say(f"MLflow refused a record of run {self.id}: {reason}")


@contextmanager
def run(
    stage: str, params: Params, *, name: str | None = None, resume_id: str | None = None
) -> Iterator[Run]:
    """Open the MLflow run of a stage and close it in its true state.

    FINISHED if the block ends, KILLED on SIGTERM or Ctrl-C, FAILED on any other exception.

    Args:
        stage: of dvc.yaml; becomes the tag `dvc_stage`.
        name: shown in MLflow; the stage's name by default.
        resume_id: a run that was interrupted and goes on; a new one if the store has lost it.

    Raises:
        TrackingError: the store does not answer; raised before the block starts.
    """
    connection = connect(params.tracking)
    buffers = absolute(params.cluster.storage) / BUFFERS
    for run_id, left in replay(connection.client, buffers).items():
        _say(f"{left} records of run {run_id} still cannot be delivered: {buffers / run_id}")
    run_id, fresh = _open(connection, name or stage, {"dvc_stage": stage}, resume_id)
    opened = Run(connection, run_id, buffers)
    if fresh:
        opened.log_params(params.flat())
    monitor = _SystemMetrics(opened) if params.tracking.system_metrics else None
    status = "FAILED"
    try:
        yield opened
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit) as error:
        status = "FINISHED" if getattr(error, "code", 1) in (0, None) else "KILLED"
        raise
    except Exception as error:
        opened.set_tags({"error": f"{type(error).__name__}: {error}"[:LONGEST_PARAM]})
        raise
    finally:
        if monitor:
            monitor.stop()
        opened.close(status)


def _open(
    connection: Connection, name: str, tags: Mapping[str, str], resume_id: str | None
) -> tuple[str, bool]:
    """Id of the run to log to, and whether it is a new one."""
    from mlflow.exceptions import MlflowException

    client = connection.client
    if resume_id:
        with suppress(MlflowException):
            if client.get_run(resume_id).info.lifecycle_stage == "active":
                client.update_run(resume_id, status="RUNNING")
                return resume_id, False
    tags = {**source_tags(), **tags}
    try:
        created = client.create_run(connection.experiment_id, run_name=name, tags=tags)
    except MlflowException as error:
        raise TrackingError(f"MLflow at {connection.uri} opens no run: {error}") from error
    return str(created.info.run_id), True


def source_tags() -> dict[str, str]:
    """Tags that name the code: git commit, command line, user."""
    tags = {"mlflow.source.name": " ".join(sys.argv), "mlflow.source.type": "LOCAL"}
    with suppress(OSError, KeyError):
        tags["mlflow.user"] = getpass.getuser()
    git = ["git", "-C", os.fspath(root())]
    with suppress(OSError, subprocess.SubprocessError):
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, check=True)
        changes = [*git, "status", "--porcelain", "--untracked-files=no"]
        dirty = subprocess.run(changes, capture_output=True, check=True).stdout
        tags["mlflow.source.git.commit"] = commit.stdout.decode().strip()
        tags["git_dirty"] = str(bool(dirty.strip())).lower()
    if experiment := os.environ.get("DVC_EXP_NAME"):
        tags["dvc_experiment"] = experiment
    return tags


class _SystemMetrics:
    """Samples processor, memory, disk, network and GPU into the run, outages included."""

    def __init__(self, run: Run) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._sampler: Any = SystemMetricsMonitor(run.id, tracking_uri=run.uri)
        self._run = run
        self._ending = threading.Event()
        self._start = time.time()
        self._thread = threading.Thread(target=self._sample, name="system-metrics", daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._ending.wait(SYSTEM_METRICS_S if time.time() - self._start > 1 else 1.0):
            self._sampler.collect_metrics()
            values = self._sampler.aggregate_metrics()
            for monitor in self._sampler.monitors:
                monitor.clear_metrics()
            elapsed = int(time.time() - self._start)
            self._run.log_metrics({f"system/{key}": v for key, v in values.items()}, elapsed)

    def stop(self) -> None:
        """End sampling; returns when the thread has ended."""
        self._ending.set()
        self._thread.join()


def _key(name: str) -> str:
    """`name` in the characters that MLflow takes."""
    return re.sub(r"[^\w\-./: ]", "_", name)


def _say(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
