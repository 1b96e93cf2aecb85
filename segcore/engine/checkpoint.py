"""Checkpoints on disk: a file is whole or it is not there."""

import contextlib
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segcore.errors import CheckpointError

_STEP_FILE = re.compile(r"step-(\d+)\.pt")


class CheckpointStore:
    """The checkpoints of one run in one folder, written by one process at a time.

    A file is written under a temporary name, synced and renamed, so that a kill at any moment
    leaves the files of before. Only tensors and plain values are stored: nothing is unpickled.

    Args:
        folder: made if absent; used by one run alone.
        keep: how many checkpoints stay, newest first.
    """

    def __init__(self, folder: Path | str, keep: int = 2) -> None:
        if keep < 1:
            raise CheckpointError(f"keep is {keep}: at least 1 checkpoint must stay")
        self.folder = Path(folder)
        self.keep = keep

    def save(self, state: Mapping[str, Any], step: int) -> Path:
        """Store a state; then drop the oldest beyond `keep`.

        Args:
            state: what `Epoch.state()` gave.
            step: orders checkpoints; a second one of the same step replaces the first.

        Raises:
            CheckpointError: the disk is full or not writable; earlier checkpoints stay.
        """
        path = self._write(f"step-{step:012d}.pt", state)
        for old in self._steps()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def latest(self) -> Path | None:
        """The newest whole checkpoint; warns of damaged ones that it passes over."""
        for path in self._steps():
            if _whole(path):
                return path
            warnings.warn(
                f"checkpoint {path} is damaged: taking the one before it", RuntimeWarning, 2
            )
        return None

    def load(self, path: Path | str) -> dict[str, Any]:
        """Read a checkpoint into CPU memory.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        if not _whole(Path(path)):
            raise CheckpointError(f"{path} is no whole checkpoint: take the one of latest()")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"cannot read checkpoint {path} ({error}): delete it, or clear() to start anew"
            ) from error
        return dict(state)

    def save_best(self, weights: Mapping[str, Tensor], metrics: Mapping[str, float]) -> Path:
        """Keep the weights and figures of the best epoch so far, replacing the earlier ones.

        Raises:
            CheckpointError: the disk is full or not writable; the earlier ones stay.
        """
        return self._write("best.pt", {"weights": dict(weights), "metrics": dict(metrics)})

    def best(self) -> tuple[dict[str, Tensor], dict[str, float]] | None:
        """What `save_best` stored last; None before.

        Raises:
            CheckpointError: it is damaged.
        """
        path = self.folder / "best.pt"
        if not path.exists():
            return None
        state = self.load(path)
        return state["weights"], state["metrics"]

    def finish(self) -> None:
        """Mark the run as finished: it is not to be resumed."""
        self._replace("finished", lambda path: path.write_bytes(b""))

    @property
    def finished(self) -> bool:
        """Whether `finish` was called since the last `clear`."""
        return (self.folder / "finished").exists()

    def clear(self) -> None:
        """Remove the checkpoints, the best weights and the mark; other files stay."""
        (self.folder / "finished").unlink(missing_ok=True)
        for path in [*self._steps(), self.folder / "best.pt", *self.folder.glob(".*.tmp")]:
            path.unlink(missing_ok=True)

    def _steps(self) -> list[Path]:
        """Checkpoint files, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted(
            (path for path in self.folder.iterdir() if _STEP_FILE.fullmatch(path.name)),
            reverse=True,
        )

    def _write(self, name: str, state: Mapping[str, Any]) -> Path:
        return self._replace(name, lambda path: torch.save(dict(state), path))

    def _replace(self, name: str, write: Any) -> Path:
        """Write under a temporary name, sync, rename, sync the folder."""
        temporary = self.folder / f".{name}.tmp"
        final = self.folder / name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".*.tmp"):
                left.unlink(missing_ok=True)
            write(temporary)
            _sync(temporary)
            os.replace(temporary, final)
            _sync(self.folder)
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise CheckpointError(
                f"cannot write {final} ({_free(self.folder)}): {_first_line(error)}. "
                "Earlier checkpoints are kept: free space or name another folder, and run again"
            ) from error
        return final


def _whole(path: Path) -> bool:
    """Whether a file is a zip archive whose every member has its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, ValueError):
        return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB free there"
    except OSError:
        return "the folder cannot be read"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
