"""MLflow runs: one per stage, checked before any work and closed in its true state."""

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import TrackingError
from pipelines.params import Params
from pipelines.storage import scratch
from pipelines.tracking.buffer import Buffer, replay
from pipelines.tracking.connection import SQLITE, Connection, check, connect
from pipelines.tracking.source import source_tags
from pipelines.tracking.system_metrics import SystemMetrics

if TYPE_CHECKING:
    import numpy as np

BUFFERS = "tracking"  # folder of undelivered records, in cluster.storage
LONGEST_PARAM = 6000
Opening = Callable[[], tuple[Connection, str]]


class Run:
    """An open MLflow run. What it logs survives an outage of the server; see `Buffer`.

    Everything happens in order in a thread of its own: importing MLflow and opening a database
    take seconds that training need not wait for. As other imports would have to wait for MLflow's,
    that thread may be told to begin later.

    Args:
        opening: connects and gives the id of the run.
        buffers: folder of undelivered records.
        later: open it at `begin`, or as soon as somebody asks for what only an open run has.
    """

    def __init__(self, opening: Opening, buffers: Path, *, later: bool = False) -> None:
        self._buffers = buffers
        self._begun = threading.Event()
        if not later:
            self._begun.set()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="tracking")
        self._failure: Exception | None = None
        self._opened = self._worker.submit(self._open, opening)

    def _open(self, opening: Opening) -> tuple[Connection, Buffer]:
        self._begun.wait()
        connection, run_id = opening()
        return connection, Buffer(connection.client, run_id, self._buffers / run_id)

    @property
    def connection(self) -> Connection:
        """The store; waits until it is open.

        Raises:
            TrackingError: it could not be opened.
        """
        self.begin()
        return self._opened.result()[0]

    @property
    def _buffer(self) -> Buffer:
        return self._opened.result()[1]

    def begin(self) -> None:
        """Open the run now, if that was put off; does not wait."""
        self._begun.set()

    @property
    def begun(self) -> bool:
        """Whether MLflow is being imported, or is there."""
        return self._begun.is_set()

    @property
    def id(self) -> str:
        """Id of the run; waits until it is open.

        Raises:
            TrackingError: it could not be opened.
        """
        self.begin()
        return self._buffer.run_id

    def when_open(self, action: Callable[[str], None]) -> None:
        """Call `action` with the id as soon as the run is open; does not wait."""
        self._later(lambda: action(self.id))

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
        now_ms = int(1000 * (time.time() if time_s is None else time_s))
        if values:
            self._later(lambda: self._buffer.metrics(values, step, now_ms))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log values, by dotted key, that are fixed for the whole run."""
        items = [(_key(key), str(value)[:LONGEST_PARAM]) for key, value in params.items()]
        for start in range(0, len(items), 100):
            self._append({"kind": "params", "values": dict(items[start : start + 100])})

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep a file with the run, below `folder`; it must stay until the run is closed."""
        self._later(lambda: self._buffer.keep(Path(path), folder))

    def log_image(self, image: "np.ndarray[Any, Any]", path: str) -> None:
        """Keep a picture, uint8 [H, W, 3], as the artifact `path`, a PNG."""
        from PIL import Image

        folder, _, name = path.rpartition("/")
        picture = Image.fromarray(image)

        def keep() -> None:
            home = self._buffer.folder / "pictures"
            home.mkdir(exist_ok=True)
            picture.save(home / name)
            self._buffer.keep(home / name, folder)

        self._later(keep)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run; None is left out."""
        values = {key: str(value) for key, value in tags.items() if value is not None}
        self._append({"kind": "tags", "values": values})

    def rename(self, name: str) -> None:
        """Show the run by another name."""
        self.set_tags({"mlflow.runName": name})

    def log_dataset(self, name: str, digest: str, *, path: Path, rows: int) -> None:
        """Record what the run read, by digest; no data is read."""
        facts = {"name": name, "digest": digest, "path": os.fspath(path), "rows": rows}
        self._append({"kind": "dataset", **facts})
        self.set_tags({"dataset_digest": digest, "dataset_name": name})

    def child(
        self, name: str, params: Mapping[str, Any], tags: Mapping[str, str], resume_id: str | None
    ) -> "Run":
        """A run nested in this one; its caller closes it.

        Args:
            name: shown in MLflow.
            params, tags: of the child, from its first moment on.
            resume_id: a child that was interrupted and goes on.
        """
        store, own = self.connection, {**tags, "mlflow.parentRunId": self.id}
        child = Run(lambda: (store, start_or_resume(store, name, own, resume_id)), self._buffers)
        child.log_params(params)
        return child

    def end_children(self, status: str) -> None:
        """End the nested runs that nobody ended; not while the store is away."""
        from mlflow.exceptions import MlflowException

        client, home = self.connection.client, [self.connection.experiment_id]
        query = f"tags.`mlflow.parentRunId` = '{self.id}' and attributes.status = 'RUNNING'"
        with suppress(MlflowException):
            for child in client.search_runs(home, query, max_results=1000):
                client.set_terminated(child.info.run_id, status)

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED and deliver what is left.

        What the store does not take is said on stderr, with where it is kept.

        Raises:
            TrackingError: the run was never opened.
        """
        end_ms = int(time.time() * 1000)
        self.begin()
        self._append({"kind": "status", "status": status, "end_ms": end_ms})
        self._worker.shutdown(wait=True)
        if self._failure:
            raise self._failure
        left = self._buffer.close()
        if left:
            _say(
                f"MLflow at {self.connection.uri} is away: {left} records of run {self.id} are "
                f"not there; they are kept in {self._buffer.folder} and sent by the next stage "
                "that runs, or by `segcore sync`"
            )
        for reason in self._buffer.refused:
            _say(f"MLflow refused a record of run {self.id}: {reason}")

    def _append(self, record: Mapping[str, Any]) -> None:
        self._later(lambda: self._buffer.append(record))

    def _later(self, action: Callable[[], None]) -> None:
        """Run an action after those before it; the first failure is raised by `close`."""

        def act() -> None:
            try:
                action()
            except Exception as error:
                self._failure = self._failure or error

        self._worker.submit(act)


@contextmanager
def open_run(
    stage: str,
    params: Params,
    *,
    name: str | None = None,
    resume_id: str | None = None,
    later: bool = False,
) -> Iterator[Run]:
    """Open the MLflow run of a stage and close it in its true state.

    FINISHED if the block ends, KILLED on SIGTERM or Ctrl-C, FAILED on any other exception.

    Args:
        stage: of dvc.yaml; becomes the tag `dvc_stage`.
        name: shown in MLflow; the stage's name by default.
        resume_id: a run that was interrupted and goes on; a new one if the store has lost it.
        later: put off what takes seconds until `begin`; a server is asked now all the same.

    Raises:
        TrackingError: the store is out of reach; raised before the block starts.
    """
    uri = check(params.tracking.uri)
    buffers = scratch(params.cluster.storage) / BUFFERS

    def opening() -> tuple[Connection, str]:
        connection = connect(params.tracking)
        for run_id, left in replay(connection.client, buffers).items():
            _say(f"{left} records of run {run_id} still cannot be delivered: {buffers / run_id}")
        return connection, start_or_resume(
            connection, name or stage, {"dvc_stage": stage}, resume_id
        )

    opened = Run(opening, buffers, later=later)
    if not uri.startswith(SQLITE):
        opened.connection  # noqa: B018 - a server may refuse: known before the work starts
    opened.log_params(params.flat())
    monitor = None
    if params.tracking.system_metrics:
        monitor = SystemMetrics(opened.log_metrics, ready=lambda: opened.begun)
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


def start_or_resume(
    connection: Connection, name: str, tags: Mapping[str, str], resume_id: str | None
) -> str:
    """Id of the run to log to: that of `resume_id` if it is there, else of a new one.

    Raises:
        TrackingError: the store refuses.
    """
    from mlflow.exceptions import MlflowException

    client = connection.client
    if resume_id:
        with suppress(MlflowException):
            if client.get_run(resume_id).info.lifecycle_stage == "active":
                client.update_run(resume_id, status="RUNNING")
                return resume_id
    tags = {**source_tags(), **tags}
    try:
        created = client.create_run(connection.experiment_id, run_name=name, tags=tags)
    except MlflowException as error:
        raise TrackingError(f"MLflow at {connection.uri} opens no run: {error}") from error
    return str(created.info.run_id)


def _key(name: str) -> str:
    """`name` in the characters that MLflow takes."""
    return re.sub(r"[^\w\-./: ]", "_", name)


def _say(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
