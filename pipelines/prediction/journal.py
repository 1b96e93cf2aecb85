"""Rows of a manifest that is not finished: each process appends what it has just written.

So a job that is killed anywhere has lost no row but those of the pictures in hand. The manifest
takes the rows in at the end, and the files go.
"""

import base64
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.storage import parse_line

FOLDER = "manifest.parts"
SUFFIX = ".jsonl"
COLUMNS = "columns"  # key of the first line: the schema of the kind's own columns


class Journal:
    """Appends records of one process, from any of its threads.

    Args:
        out: folder of the predictions.
        columns: of the kind of task.
    """

    def __init__(self, out: Path, columns: Iterable[tuple[str, pa.DataType]]) -> None:
        folder = out / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}{SUFFIX}"
        self._file = (folder / name).open("ab", buffering=0)
        schema = pa.schema(list(columns)).serialize().to_pybytes()
        self._write({COLUMNS: base64.b64encode(schema).decode("ascii")})

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record in one write: it is there whole, or as a torn last line."""
        self._write(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")


def read(out: Path, count: int = 4096) -> Iterator[tuple[list[dict[str, Any]], pa.Schema]]:
    """Records of the parts, at most `count` at a time, with the schema of the kind's columns,
    oldest part first.

    What is torn or is no part is left out.
    """
    parts = sorted((out / FOLDER).glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime_ns)
    for part in parts:
        with part.open("rb") as lines:
            records = (record for record in map(parse_line, lines) if record is not None)
            try:
                encoded = base64.b64decode(next(records)[COLUMNS])
                schema = pa.ipc.read_schema(pa.py_buffer(encoded))
            except (KeyError, TypeError, ValueError, StopIteration, pa.ArrowException):
                continue
            while some := list(islice(records, count)):
                yield some, schema


def exists(out: Path) -> bool:
    """Whether a job in this folder did not come to its end, or is still at work."""
    return any((out / FOLDER).glob(f"*{SUFFIX}"))


def clear(out: Path) -> None:
    """Remove the parts, whose rows are in the manifest by now."""
    for part in (out / FOLDER).glob(f"*{SUFFIX}"):
        part.unlink(missing_ok=True)
    with suppress(OSError):
        (out / FOLDER).rmdir()
