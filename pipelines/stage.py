"""How every stage starts and ends: one process, one clear message on failure, no orphans."""

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

PR_SET_PDEATHSIG = 1
TERMINATED = 143


def die_with_parent() -> None:
    """End this process by SIGTERM when its parent dies, so that no stage outlives `dvc repro`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a stage and end the process: exit code 0, `main`'s own, 1 on a user's error, 143 on TERM.

    A `SegcoreError` becomes one message on stderr; any other exception is a bug and keeps its
    traceback. SIGTERM unwinds the stack, so that context managers close what they opened.
    """
    from segcore.errors import SegcoreError

    signal.signal(signal.SIGTERM, _terminate)
    die_with_parent()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        code = main()
    except SegcoreError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr, flush=True)
        code = 130
    gc.freeze()  # else the interpreter walks all that torch and MLflow hold: a second at each end
    sys.exit(code)
