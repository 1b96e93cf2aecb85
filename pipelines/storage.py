"""Where things lie: absolute paths, and the folder of a run by the digest of its inputs."""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import segcore
from segcore.data.address import is_remote

ROOT_VARIABLE = "SEGCORE_ROOT"
LOCK = "in_use.lock"
SCRATCH = Path("outputs/runs")

_held: list[IO[bytes]] = []


def root() -> Path:
    """The folder that relative paths start from: SEGCORE_ROOT, else the current one.

    A submitted Ray job runs in a temporary copy of the repository, without data; there
    SEGCORE_ROOT names the real one.
    """
    return Path(os.environ.get(ROOT_VARIABLE) or Path.cwd()).resolve()


def absolute(path: Path | str) -> Path:
    """`path`, seen from `root` if it is relative; workers run in other folders."""
    return (root() / Path(path).expanduser()).resolve()


def scratch(storage: str) -> Path:
    """The local folder of a storage: itself, or one of its own where it is a bucket.

    What only this node uses lies there in any case: caches, downloads, records for MLflow.
    """
    return absolute(SCRATCH / scratch_name(storage)) if is_remote(storage) else absolute(storage)


def scratch_name(storage: str) -> str:
    """Name of the local folder of a bucket."""
    return f"s3-{hashlib.sha256(storage.rstrip('/').encode()).hexdigest()[:8]}"


def code_version(*parts: str) -> str:
    """Hex digest over the source files of segcore, or of some of its modules and packages."""
    package = Path(segcore.__file__).parent
    total = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        if parts and file.relative_to(package).parts[0] not in parts:
            continue
        total.update(file.relative_to(package).as_posix().encode() + b"\0")
        total.update(file.read_bytes())
    return total.hexdigest()[:16]


def run_digest(stage: str, inputs: Mapping[str, Any]) -> str:
    """Identity of a run: same inputs and same code resume, others start fresh."""
    text = json.dumps({**inputs, "stage": stage, "code": code_version()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_folder(storage: str, stage: str, digest: str) -> Path:
    """Folder of the resumable state of a run; created if it is not there.

    A shared lock in it tells `segcore clean` that the run goes on, until this process ends.
    """
    folder = scratch(storage) / f"{stage}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    _held.append((folder / LOCK).open("wb"))
    with suppress(OSError):  # a file system without locks
        fcntl.flock(_held[-1], fcntl.LOCK_SH | fcntl.LOCK_NB)
    return folder


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that is either whole or not there: temporary name, sync, rename."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON line; a line torn by a kill stays a line of its own."""
    with path.open("ab+") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        else:
            torn = False
        file.write((b"\n" if torn else b"") + json.dumps(record).encode() + b"\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file of `append_line`, torn lines left out."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return [record for record in map(parse_line, lines) if record is not None]


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The record in a line of `append_line`; None for a torn or an empty one."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
