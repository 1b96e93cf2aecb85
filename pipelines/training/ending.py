"""An end that is asked for: SIGTERM brings a checkpoint of the step at hand, then the end.

It may reach the driver, whose workers are other processes and hear of it through a file in the
run's folder, or a worker, whose node is about to be taken away.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipelines.mirror import Mirror

FILE = "end_asked"
GRACE_S = 20.0  # for the step at hand and its checkpoint; clouds give 30 s and more
LOOK_S = 0.2
AGAIN_S = 1.0  # the death of a parent with several threads brings several SIGTERMs at once
REMOTE_LOOK_S = 5.0

_heard = threading.Event()


class Asked:
    """Tells `segcore.fit` whether an end was asked for, of this process or of the driver.

    Args:
        run: its folder.
    """

    def __init__(self, run: Mirror) -> None:
        self._run = run
        self._next = 0.0

    def __call__(self) -> bool:
        if _heard.is_set():
            return True
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + (REMOTE_LOOK_S if self._run.is_remote else LOOK_S)
        return of_driver(self._run)


def of_driver(run: Mirror) -> bool:
    """Whether the driver of a run was asked to end."""
    return (run.folder / FILE).exists() or (run.is_remote and run.read(FILE) is not None)


def listen() -> None:
    """In the main thread of a worker: SIGTERM asks for an end and no more."""
    signal.signal(signal.SIGTERM, lambda signum, frame: _heard.set())


@contextmanager
def checkpoint_first(run: Mirror) -> Iterator[None]:
    """For the length of a block, let SIGTERM end it only after a checkpoint.

    The first one asks the run to end after its step; the block is left as soon as it has. Another
    one after AGAIN_S, or GRACE_S, does at once what SIGTERM did before the block.

    Args:
        run: its folder; it follows `Asked(run)`.

    Raises:
        SystemExit: an end was asked for.
    """
    _heard.clear()
    run.remove(FILE)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, first = signal.getsignal(signal.SIGTERM), 0.0

    def end(signum: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if callable(before):
            before(signal.SIGTERM, frame)
        raise SystemExit(128 + signal.SIGTERM)

    def ask(signum: int, frame: FrameType | None) -> None:
        nonlocal first
        if _heard.is_set():
            if time.monotonic() > first + AGAIN_S:
                end(signum, frame)
            return
        first = time.monotonic()
        _heard.set()
        (run.folder / FILE).touch()
        threading.Thread(target=run.push, args=(FILE,), daemon=True).start()
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)

    alarm = signal.signal(signal.SIGALRM, end)
    signal.signal(signal.SIGTERM, ask)
    try:
        yield
        if _heard.is_set():
            end(signal.SIGTERM, None)  # what ended the block early must not pass for its end
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        signal.signal(signal.SIGTERM, before)
