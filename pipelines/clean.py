"""What earlier work left in the storage folder, and which of it can go."""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines.storage import LOCK

RECENT_S = 600.0
RUN = re.compile(r"[a-z]+-[0-9a-f]{16}")
UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Leftover:
    """One file or folder of the storage.

    Args:
        path: of it.
        what: it is.
        size: bytes in all.
        age_s: seconds since anything in it changed.
        kept: why it must stay; "" if it can go.
    """

    path: Path
    what: str
    size: int
    age_s: float
    kept: str = ""

    def remove(self) -> None:
        """Delete it, with what it holds."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)


def leftovers(storage: Path) -> list[Leftover]:
    """Everything in a storage folder that stages leave there; what they do not know is left out."""
    used = files_in_use(storage)
    found = [_leftover(path, what, used) for path, what in _places(storage)]
    return sorted(found, key=lambda entry: -entry.size)


def _places(storage: Path) -> Iterator[tuple[Path, str]]:
    for path in storage.glob("*-*"):
        if path.is_dir() and RUN.fullmatch(path.name):
            stage = path.name.partition("-")[0]
            yield path, f"unfinished {stage}; the same command would go on with it"
    for path in storage.glob("cache/*.cache*"):
        yield path, "decoded images; made again when needed"
    for path in storage.glob("models/*"):
        yield path, "downloaded model; fetched again when needed"
    for path in storage.glob("exported/*"):
        yield path, "exported model; made again when needed"
    for asker in ("budget", "doctor"):
        for path in storage.glob(f"{asker}/*"):
            yield path, f"what segcore {asker} trained; made again when needed"
    for path in storage.glob("evaluations/*"):
        yield path, "figures of an evaluation; made again when needed"
    for path in storage.glob("tracking/*/"):
        yield path, "records for MLflow"


def _leftover(path: Path, what: str, used: set[Path]) -> Leftover:
    size, newest = 0, 0.0
    for file in [path, *(path.rglob("*") if path.is_dir() else ())]:
        with suppress(OSError):  # a running process may remove it meanwhile
            found = file.lstat()
            newest = max(newest, found.st_mtime)
            size += found.st_size if not file.is_dir() else 0
    age = max(0.0, time.time() - newest)
    return Leftover(path, what, size, age, _kept(path, age, used))


def _kept(path: Path, age_s: float, used: set[Path]) -> str:
    if path.parent.name == "tracking":
        return "not delivered yet: the next stage or `segcore sync` sends them"
    if _is_locked(path / LOCK) or any(path == file or path in file.parents for file in used):
        return "in use by a running process"
    if path.parent.name == "cache" and _is_locked(path.parent / _lock_of(path.name)):
        return "being written by a running process"
    if age_s < RECENT_S:
        return f"changed {duration(age_s)} ago: it may be in use"
    return ""


def _lock_of(cache: str) -> str:
    """The lock of a cache file `<name>-<16 hex>.cache`; see `segcore.data.cache`."""
    return f"{cache.split('.cache')[0].rpartition('-')[0]}.lock"


def _is_locked(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def files_in_use(storage: Path) -> set[Path]:
    """Files below a folder that processes of this machine have open or mapped, where Linux says."""
    prefix, found = f"{storage}/", set[Path]()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for line in (process / "maps").read_text(errors="replace").splitlines():
                name = line[line.find("/") :] if "/" in line else ""
                found |= {Path(name)} if name.startswith(prefix) else set()
        with suppress(OSError):
            for link in (process / "fd").iterdir():
                with suppress(OSError):
                    name = os.readlink(link)
                    found |= {Path(name)} if name.startswith(prefix) else set()
    return found


def amount(size: float) -> str:
    """Bytes in the unit that suits them."""
    power = 0
    while size >= 1000 and power < len(UNITS) - 1:
        size, power = size / 1000, power + 1
    return f"{size:.{min(power, 1)}f} {UNITS[power]}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
