"""Whether the head of the cluster lives: its loss is one line here, not the end of the process.

Ray's own client waits a minute for a head that is gone and then ends the process from within,
past every `except` and `finally`.
"""

import atexit
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipelines.errors import ClusterError

LOOK_S = 1.0
LOST_S = 8.0  # of silence; a head that restarts is longer away
SIGNAL = signal.SIGUSR2


class Watch:
    """Looks at the head from a thread, and interrupts the main thread when it is gone.

    Args:
        main: the thread to interrupt, by its identifier; None where it cannot be.
    """

    def __init__(self, main: int | None) -> None:
        self.address = ""
        self.lost = False
        self._main = main
        self._ending = threading.Event()

    def begin(self, address: str) -> None:
        """Look at a head from now on.

        Args:
            address: host:port of its control service.
        """
        self.address = address
        if self._main is not None:
            watcher = threading.Thread(
                target=self._look, args=(self._main,), name="head-watch", daemon=True
            )
            watcher.start()

    def error(self) -> ClusterError:
        """What to say of a head that is gone."""
        return ClusterError(
            f"the head of the Ray cluster at {self.address} is gone: start it again; the same "
            "command goes on from the newest checkpoint"
        )

    def end(self) -> None:
        """Look no more."""
        self._ending.set()

    def _look(self, main: int) -> None:
        seen = time.monotonic()
        while not self._ending.wait(LOOK_S):
            if listens(self.address):
                seen = time.monotonic()
            elif time.monotonic() - seen > LOST_S:
                self.lost = True
                signal.pthread_kill(main, SIGNAL)
                return


def listens(address: str) -> bool:
    """Whether anything listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=LOOK_S).close()
    except OSError:
        return False
    return True


@contextmanager
def watched() -> Iterator[Watch]:
    """A watch for the length of a block; on the main thread it ends a block whose head is lost.

    Raises:
        ClusterError: the head did not answer for LOST_S.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Watch(None)
        return
    watch = Watch(threading.get_ident())

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise watch.error()

    before = signal.signal(SIGNAL, interrupt)
    try:
        yield watch
    except GeneratorExit:
        raise  # of a block in a generator whose consumer was interrupted
    except BaseException as error:
        # Ray makes an exit with code 1 of whatever is raised while it waits.
        if watch.lost:
            raise watch.error() from error
        raise
    finally:
        watch.end()
        signal.signal(SIGNAL, before)
        if watch.lost:
            _forget_ray()


def _forget_ray() -> None:
    """Leave Ray as it is: every call to a head that is gone waits for a minute."""
    from ray._private import worker

    atexit.unregister(worker.shutdown)
    node = worker._global_node
    if node is not None and node.is_head():
        node.kill_all_processes(check_alive=False, allow_graceful=False)
