"""A `SegcoreError` of a worker or a trial, on its way to the driver through a file.

Ray hands exceptions on inside its own, with tracebacks, and retries what no retry can mend.
"""

import importlib
import json

from pipelines.mirror import Mirror
from pipelines.storage import write_atomic
from segcore.errors import SegcoreError

FILE = "failure.json"


def write(run: Mirror, error: SegcoreError) -> None:
    """Leave an error in the folder of a run."""
    kind = type(error)
    facts = {"module": kind.__module__, "kind": kind.__qualname__, "message": str(error)}
    run.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(run.folder / FILE, json.dumps(facts).encode())
    run.push(FILE)


def read(run: Mirror) -> SegcoreError | None:
    """The error that was left in a folder, of its own kind; None if there is none."""
    try:
        facts = json.loads(run.read(FILE) or b"")
    except (OSError, ValueError):
        return None
    kind = getattr(importlib.import_module(facts["module"]), facts["kind"], SegcoreError)
    error: SegcoreError = kind(facts["message"])
    return error


def clear(run: Mirror) -> None:
    """Forget the error of an earlier attempt."""
    run.remove(FILE)
