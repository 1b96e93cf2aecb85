"""Delivery of what a run logs: written to a file first, sent from there by a thread.

MLflow's client blocks for minutes when its server is away, or loses points (asynchronous logging).
Here the caller only appends to a file. What was delivered is counted beside it, so that the rest
can be replayed by any later process; MLflow takes the same point twice as one.
"""

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import accumulate, islice
from pathlib import Path
from typing import IO, Any

from pipelines.storage import LOCK, append_line, parse_line, read_lines, write_atomic

RETRY_S = 5.0
CLOSE_S = 20.0
BATCH = 1000  # metrics in one request, the limit of MLflow's REST API
RECORDS = "records.jsonl"
SENT = "sent"


class Buffer:
    """A run's records on disk, and the thread that sends them.

    Args:
        client: an MlflowClient with bounded retries.
        run_id: the run that the records belong to.
        folder: where the records are kept until they are delivered; created.
    """

    def __init__(self, client: Any, run_id: str, folder: Path) -> None:
        self.client = client
        self.run_id = run_id
        self.folder = folder
        self.refused: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._mark = _lock(folder)
        sent = folder / SENT
        self._sent = int(sent.read_text()) if sent.is_file() else 0
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._news = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._send_forever, name="tracking", daemon=True)
        self._thread.start()

    def metrics(self, values: Mapping[str, float], step: int, time_ms: int) -> None:
        """Queue metrics of one step; `time_ms` since the epoch is part of their identity."""
        rows = [[key, float(value), time_ms, step] for key, value in values.items()]
        self.append({"kind": "metrics", "rows": rows})

    def append(self, record: Mapping[str, Any]) -> None:
        """Queue a record: kind metrics, params, tags, artifact, dataset or status."""
        with self._lock:
            append_line(self.folder / RECORDS, record)
        self._news.set()

    def keep(self, path: Path, folder: str) -> None:
        """Queue an artifact: a copy of the file, sent to `folder` of the run's artifacts."""
        home = self.folder / "artifacts" / str(time.monotonic_ns())
        home.mkdir(parents=True)
        shutil.copy2(path, home / path.name)
        where = str((home / path.name).relative_to(self.folder))
        self.append({"kind": "artifact", "path": where, "folder": folder})

    def flush(self) -> int:
        """Send what is queued; returns how many records are left because the store is away."""
        with self._sending:
            queued = self._queued()
            while queued:
                count = _batch([record for record, _ in queued])
                try:
                    self._deliver([record for record, _ in queued[:count]])
                except Exception as error:
                    if not _is_refusal(error):
                        return len(queued)
                    self.refused.append(str(error))
                self._sent = queued[count - 1][1]
                write_atomic(self.folder / SENT, str(self._sent).encode())
                queued = queued[count:]
            return 0

    def close(self, limit_s: float = CLOSE_S) -> int:
        """Send the rest within `limit_s`; returns how many records could not be delivered.

        The folder goes when nothing is left, and stays as the record of the rest otherwise.
        """
        self._closing = True
        self._news.set()
        self._thread.join()
        end = time.monotonic() + limit_s
        while (left := self.flush()) and time.monotonic() < end:
            time.sleep(min(2.0, limit_s / 10))
        if not left:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._mark.close()
        return left

    def _queued(self) -> list[tuple[dict[str, Any], int]]:
        """Records not delivered yet, each with the offset in the file at which it ends."""
        file = self.folder / RECORDS
        if not file.is_file():
            return []
        with self._lock, file.open("rb") as stream:
            stream.seek(self._sent)
            lines = stream.readlines()
        ends = accumulate((len(line) for line in lines), initial=self._sent)
        parsed = zip(map(parse_line, lines), islice(ends, 1, None), strict=True)
        return [(record, end) for record, end in parsed if record is not None]

    def _send_forever(self) -> None:
        while not self._closing:
            self._news.wait()
            self._news.clear()
            if not self._closing and self.flush():
                self._wait_for_retry()

    def _wait_for_retry(self) -> None:
        end = time.monotonic() + RETRY_S
        while not self._closing and time.monotonic() < end:
            time.sleep(0.1)
        self._news.set()

    def _deliver(self, records: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        first = records[0]
        match first["kind"]:
            case "metrics":
                rows = [Metric(*row) for record in records for row in record["rows"]]
                self.client.log_batch(self.run_id, metrics=rows)
            case "params":
                rows = [Param(key, value) for key, value in first["values"].items()]
                self.client.log_batch(self.run_id, params=rows)
            case "tags":
                rows = [RunTag(key, value) for key, value in first["values"].items()]
                self.client.log_batch(self.run_id, tags=rows)
            case "artifact":
                file = os.fspath(self.folder / first["path"])
                self.client.log_artifact(self.run_id, file, first["folder"] or None)
            case "dataset":
                self.client.log_inputs(self.run_id, [_dataset(first)])
            case "status":
                self.client.set_terminated(self.run_id, first["status"], first["end_ms"])


def replay(client: Any, folder: Path) -> dict[str, int]:
    """Send what earlier runs left in `folder`; returns how many records are left, by run id."""
    left = {}
    for home in waiting(folder):
        count = Buffer(client, home.name, home).close(limit_s=0.0)
        left.update({home.name: count} if count else {})
    return left


def waiting(folder: Path) -> list[Path]:
    """Buffers below `folder` that no running process sends from."""
    homes = sorted(folder.glob("*/")) if folder.is_dir() else []
    return [home for home in homes if (home / RECORDS).is_file() and not _in_use(home)]


def _lock(home: Path) -> IO[bytes]:
    """A mark on a buffer that goes with its process, however that ends."""
    mark = (home / LOCK).open("ab")
    with suppress(OSError):  # taken by another of this process, or a file system without locks
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return mark


def _in_use(home: Path) -> bool:
    """A run that goes on in another process still writes to its buffer."""
    with (home / LOCK).open("ab") as mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks: as far as the file tells
            return _is_recent(home) and not _is_ended(home)
    return False


def _is_recent(home: Path) -> bool:
    return time.time() - (home / RECORDS).stat().st_mtime < 60.0


def _is_ended(home: Path) -> bool:
    return any(record["kind"] == "status" for record in read_lines(home / RECORDS))


def _dataset(record: Mapping[str, Any]) -> Any:
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.data.sources import LocalArtifactDatasetSource
    from mlflow.entities import DatasetInput, InputTag

    source = LocalArtifactDatasetSource(record["path"])
    # MLflow keeps 36 characters of a digest.
    data: Any = MetaDataset(source=source, name=record["name"], digest=record["digest"][:36])
    tags = [InputTag("mlflow.data.context", "training"), InputTag("rows", str(record["rows"]))]
    return DatasetInput(data._to_mlflow_entity(), tags)


def _batch(records: list[dict[str, Any]]) -> int:
    """How many of the first records go into one request: metrics together, others alone."""
    count, rows = 0, 0
    for record in records:
        if record["kind"] != "metrics" or rows + len(record["rows"]) > BATCH:
            break
        count, rows = count + 1, rows + len(record["rows"])
    return max(count, 1)


def _is_refusal(error: Exception) -> bool:
    """Whether the store answered that it will never take the record."""
    code = getattr(error, "error_code", None)
    return isinstance(error, FileNotFoundError) or code in (
        "INVALID_PARAMETER_VALUE",
        "RESOURCE_DOES_NOT_EXIST",
        "BAD_REQUEST",
    )
