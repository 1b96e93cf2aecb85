"""The folder of one training run: what resumes it, its best weights, and what it tells its driver.

Rank 0 writes; the driver, which may be another process, follows `events.jsonl` and
`progress.json`. So only the driver speaks to MLflow and to the terminal.
"""

import fcntl
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import segcore
from pipelines.errors import TrainingFailedError
from pipelines.mirror import Mirror
from pipelines.storage import append_line, parse_line, write_atomic
from pipelines.training.uploads import BEST, CHECKPOINTS, EVENTS, Latest, Uploads

PROGRESS = "progress.json"
EPOCH = "epoch"
RUN = "run.json"
WRITER = "writer.lock"
PROGRESS_S = 0.25
CLAIM_S = 90.0
CLAIM_POLL_S = 0.2


@dataclass(frozen=True)
class Best:
    """The weights that the run is judged by.

    Args:
        weights: state dict of the model, on the CPU.
        epoch: after which they were taken.
        metrics: of that epoch.
    """

    weights: dict[str, Any]
    epoch: int
    metrics: dict[str, float]


class RunState:
    """State of one training run on disk.

    Args:
        folder: absolute; created.
        metric: of `Epoch.metrics`, by which epochs are compared.
        mode: "max" or "min".
        keep_last: the last epoch is the best: nothing was held back to compare by.
        keep_best: keep the weights of the best epoch; nobody asks for those of a trial.
        storage: `cluster.storage`; where it is a bucket, `folder` is mirrored there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        metric: str,
        mode: str,
        keep_last: bool = False,
        keep_best: bool = True,
        storage: str = "",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.mirror = Mirror.of(storage, folder)
        self.uploads = Uploads(self.mirror)
        self.metric = metric
        self.sign = 1.0 if mode == "max" else -1.0
        self.keep_last = keep_last
        self.keep_best = keep_best
        self._highest: float | None = None
        self.checkpoints = segcore.CheckpointStore(folder / CHECKPOINTS, keep=2)

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Be the only process that writes to the run, once an earlier one has gone.

        A driver that was killed leaves workers behind, for seconds; a stage whose DVC was killed
        still writes its last checkpoint. The lock ends with the process that holds it.

        Raises:
            TrainingFailedError: another process holds the run for longer than CLAIM_S.
        """
        with (self.folder / WRITER).open("wb") as file:
            end = time.monotonic() + CLAIM_S
            while not _locks(file):
                if time.monotonic() > end:
                    raise TrainingFailedError(
                        f"another process trains in {self.folder} (it has been waited for "
                        f"{CLAIM_S:g} s): stop it, or wait until it ends, and run again"
                    )
                time.sleep(CLAIM_POLL_S)
            yield

    def resume(self) -> dict[str, Any] | None:
        """The newest complete checkpoint; None at a fresh start.

        Where the storage is a bucket, its version is fetched: all nodes start from the same.
        """
        self.mirror.pull(CHECKPOINTS, exact=True)
        self.mirror.pull(EVENTS, exact=True)
        latest = self.checkpoints.latest()
        return None if latest is None else self.checkpoints.load(latest)

    def keep(self, epoch: "segcore.Epoch", state: dict[str, Any]) -> Path:
        """Store a report of the loop: best weights first, so that a checkpoint never outruns them.

        To a bucket they are copied while training goes on, the event last: a checkpoint counts
        once it is there. One report is on its way at a time; `finish` waits for the last.

        Args:
            epoch: the report.
            state: its `state()`, which is a collective call and therefore the caller's.

        Returns:
            The checkpoint.
        """
        if epoch.complete and self.keep_best:
            self._keep_best(epoch)
        path = self.checkpoints.save(state, epoch.step)
        event = {
            "epoch": epoch.number,
            "step": epoch.step,
            "complete": epoch.complete,
            "last": epoch.last,
            "metrics": epoch.metrics,
            "time_s": time.time(),
        }
        self.uploads.wait()
        append_line(self.folder / EVENTS, event)
        self.uploads.start()
        return path

    def finish(self) -> None:
        """Wait until all that was kept is where it counts.

        Raises:
            DataError: the bucket does not answer or refuses.
        """
        self.uploads.wait()

    def progress(self) -> dict[str, Any] | None:
        """What `ProgressLoader` told last; None before the first batch."""
        content = self.mirror.read(PROGRESS)
        return None if content is None else parse_line(content)

    def events(self) -> list[dict[str, Any]]:
        """Reports so far, in order; those that a resumed run repeated are left out."""
        seen, events = -1, []
        lines = (self.mirror.read(EVENTS) or b"").split(b"\n")
        for event in filter(None, map(parse_line, lines)):
            if event["step"] > seen:
                seen = event["step"]
                events.append(event)
        return events

    def best(self) -> Best:
        """The best weights so far.

        Raises:
            TrainingFailedError: no epoch was completed.
        """
        self.mirror.pull(f"{CHECKPOINTS}/{BEST}", exact=True)
        found = self.checkpoints.best()
        if found is None:
            raise TrainingFailedError(
                f"no epoch was completed in {self.folder}: give train.max_minutes more time"
            )
        weights, metrics = found
        return Best(weights, int(metrics[EPOCH]), metrics)

    def remember(self, facts: Mapping[str, Any]) -> None:
        """Keep facts that a rerun needs, such as the id of the MLflow run."""
        write_atomic(self.folder / RUN, json.dumps({**self.recall(), **facts}).encode())
        self.mirror.push(RUN)

    def recall(self) -> dict[str, Any]:
        """What `remember` kept."""
        content = self.mirror.read(RUN)
        return {} if content is None else dict(json.loads(content))

    def clear(self) -> None:
        """Forget the run: one with the same inputs starts fresh."""
        self.mirror.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _keep_best(self, epoch: "segcore.Epoch") -> None:
        score = self._score(epoch.metrics)
        if self._highest is None:
            found = self.checkpoints.best()
            self._highest = None if found is None else self._score(found[1])
        if self.keep_last or self._highest is None or score > self._highest:
            self.checkpoints.save_best(epoch.weights(), {**epoch.metrics, EPOCH: epoch.number})
            self._highest = score

    def _score(self, metrics: Mapping[str, float]) -> float:
        score = self.sign * metrics.get(self.metric, math.nan)
        return score if score == score else -math.inf


def _locks(file: IO[bytes]) -> bool:
    """Whether this process now holds the lock of a file; true where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


class ProgressLoader:
    """A loader that tells in a file how far it is; what it yields is the loader's own.

    Args:
        loader: of training batches.
        run: in whose folder PROGRESS is rewritten a few times a second.
    """

    def __init__(self, loader: Any, run: Mirror) -> None:
        self._loader = loader
        self._file = run.folder / PROGRESS
        self._push = Latest(run, PROGRESS)
        self._next = 0.0

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return self.epoch(0)

    def epoch(self, number: int, start: int = 0) -> Iterator[Any]:
        """Batches of an epoch from batch `start` on."""
        from segcore.engine.batches import image_count  # torch, which the driver does without

        begin, images = time.monotonic(), 0
        for step, batch in enumerate(self._loader.epoch(number, start), start):
            yield batch
            images += image_count(batch)
            self._tell(number, step + 1, images / (time.monotonic() - begin))

    def _tell(self, epoch: int, step: int, rate: float) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PROGRESS_S
        facts = {"epoch": epoch, "step": step, "steps": len(self), "images_per_s": rate}
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(facts))
        os.replace(part, self._file)
        self._push()
