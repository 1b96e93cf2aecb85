"""Worker processes that end with the process that started them, however it ends."""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.synchronize import Event
from types import ModuleType

from segcore.errors import DataError

SAMPLES_PER_WORKER = 64


def count_workers(
    samples: int, workers: int | None, *, per_worker: int = SAMPLES_PER_WORKER
) -> int:
    """How many processes are worth their start: `workers`, else one a CPU and `per_worker`."""
    if workers is not None:
        return max(1, workers)
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cpus, samples // per_worker))


class _Bare(SpawnProcess):
    """A process that does not run the caller's script again, as spawned ones do.

    So a script may use many processes without `if __name__ == "__main__"`.
    """

    def start(self) -> None:
        """With nothing for the main module, which is how multiprocessing finds the script."""
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main


class _BareContext(SpawnContext):
    Process = _Bare


class WorkerPool(ProcessPoolExecutor):
    """Spawned processes that can be told to stop in the middle of a long task.

    Args:
        workers: how many.
        script: run the caller's script again in each, which defines what they are to do.
    """

    def __init__(self, workers: int, *, script: bool = False) -> None:
        context = SpawnContext() if script else _BareContext()
        self._stop = context.Event()
        super().__init__(
            workers, mp_context=context, initializer=_start_worker, initargs=(self._stop,)
        )

    def stop(self) -> None:
        """Make `check_stop` raise in all workers."""
        self._stop.set()


@contextmanager
def worker_pool(workers: int, task: object = None) -> Iterator[WorkerPool | None]:
    """Several processes, or None where this one does the work.

    Args:
        workers: how many.
        task: what they will be sent, or the like of it: where it is of the caller's script, the
            processes run that first.

    Raises:
        DataError: a worker was killed, by lack of memory say.
    """
    if workers == 1:
        yield None
        return
    script = b"__main__" in pickle.dumps(task)
    pool = WorkerPool(workers, script=script)
    try:
        yield pool
    except BrokenProcessPool as error:
        unguarded = ', or put what the script does under `if __name__ == "__main__":`'
        raise DataError(
            "a worker process was killed (out of memory?): run it again with fewer workers"
            + (unguarded if script else "")
        ) from error
    finally:
        pool.stop()
        pool.shutdown(wait=True, cancel_futures=True)


class StoppedError(Exception):
    """A worker gave up its task because it was told to."""


_stop: list[Event] = []  # of this process, if it is a worker


def check_stop() -> None:
    """Called between the steps of a long task.

    Raises:
        StoppedError: this is a worker and its pool stops.
    """
    if _stop and _stop[0].is_set():
        raise StoppedError


def _start_worker(stop: Event) -> None:
    _stop.append(stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
