"""Whether a folder is as it was: by the names, sizes and times of its files, in little time."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.storage import write_atomic


def signature(folder: Path) -> str:
    """Hex digest over path, size, time of change and inode of every file below a folder.

    Links are followed; a folder that is met again is not entered again. Of a folder that is not
    there, it is that of nothing.
    """
    lines: list[str] = []
    entered: set[tuple[int, int]] = set()
    left = [os.fspath(folder)] if folder.is_dir() else []
    while left:
        path = left.pop()
        found = os.stat(path)
        if (found.st_dev, found.st_ino) in entered:
            continue
        entered.add((found.st_dev, found.st_ino))
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir():
                    left.append(entry.path)
                elif entry.is_file():
                    facts = entry.stat()
                    lines.append(
                        f"{entry.path}\0{facts.st_size}\0{facts.st_mtime_ns}\0{facts.st_ino}"
                    )
    lines.sort()
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


class Seen:
    """Remembers in a file what a stage last saw.

    Args:
        file: of the memory.
        facts: JSON values, all that the stage's result depends on.
    """

    def __init__(self, file: Path, facts: Mapping[str, Any]) -> None:
        self._file = file
        self._facts = dict(facts)

    def is_same(self) -> bool:
        """Whether it saw the same facts."""
        try:
            return bool(json.loads(self._file.read_text()) == self._facts)
        except (OSError, ValueError):
            return False

    def remember(self) -> None:
        """Keep them."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._file, json.dumps(self._facts, indent=1).encode())
