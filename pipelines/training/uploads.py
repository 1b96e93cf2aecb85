"""Copies of a run's files to a bucket, in a thread of their own, while training goes on."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from pipelines.mirror import Mirror
from segcore.errors import DataError

CHECKPOINTS = "checkpoints"
BEST = "best.pt"
EVENTS = "events.jsonl"
EVERY_S = 5.0


class Uploads:
    """Shares what a report of the loop left in the folder of a run; one report at a time.

    Args:
        run: the folder; without a place nothing is done.
    """

    def __init__(self, run: Mirror) -> None:
        self._run = run
        self._pool: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None
        self._shared = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"_run": self._run, "_pool": None, "_last": None, "_shared": 0}

    def start(self) -> None:
        """Begin to share the files, and the events last."""
        if self._run.is_remote:
            self._pool = self._pool or ThreadPoolExecutor(1, "uploads")
            self._last = self._pool.submit(self._share)

    def wait(self) -> None:
        """Wait for what was begun.

        Raises:
            DataError: the bucket does not answer or refuses.
        """
        if self._last is not None:
            last, self._last = self._last, None
            last.result()

    def _share(self) -> None:
        for folder in sorted(self._run.folder.iterdir()):
            if folder.is_dir() and folder.name != CHECKPOINTS:
                self._run.push_new(folder.name)
        self._run.push_new(CHECKPOINTS)  # a step's file is written once, the best one again
        best = f"{CHECKPOINTS}/{BEST}"
        file = self._run.folder / best
        if file.is_file() and file.stat().st_mtime_ns != self._shared:
            self._shared = file.stat().st_mtime_ns
            self._run.push(best)
        self._run.push(EVENTS)
        self._run.prune(CHECKPOINTS)


class Latest:
    """Shares the newest version of a small file every few seconds, and waits for nothing.

    Args:
        run: the folder; without a place nothing is done.
        name: of the file.
    """

    def __init__(self, run: Mirror, name: str) -> None:
        self._run = run
        self._name = name
        self._next = 0.0
        self._thread: threading.Thread | None = None

    def __call__(self) -> None:
        """The file has changed."""
        busy = self._thread is not None and self._thread.is_alive()
        if self._run.is_remote and not busy and time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY_S
            self._thread = threading.Thread(target=self._share, daemon=True)
            self._thread.start()

    def _share(self) -> None:
        with suppress(DataError):  # a checkpoint, which counts, meets the same error
            self._run.push(self._name)
