"""The driver's view of a run: follows what rank 0 writes, shows it, and hands reports on."""

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

from pipelines.training.run_state import RunState

POLL_S = 0.2
REMOTE_POLL_S = 2.0
Event = dict[str, Any]


class Follower:
    """While its block runs, shows progress and calls `on_event` with each report of the loop.

    On a terminal a bar shows losses, headline metric, images/s and the time left; elsewhere each
    epoch is a line. Reports of an earlier, interrupted process come first and are not shown again.

    Args:
        state: the run.
        epochs: that it will have.
        max_minutes: the clock that ends it, if that does.
        headline: (name, key) of the metric that is shown beside the losses.
        on_event: called in a thread of its own, never twice for one step.
        on_start: called there once, when the first batch has been read.
    """

    def __init__(
        self,
        state: RunState,
        *,
        epochs: int,
        max_minutes: float | None,
        headline: tuple[str, str],
        on_event: Callable[[Event], None],
        on_start: Callable[[], None],
    ) -> None:
        self.state = state
        self.epochs = epochs
        self.max_minutes = max_minutes
        self.shown = (("loss", "train/loss"), ("val loss", "val/loss"), headline)
        self.on_event = on_event
        self._on_start: Callable[[], None] | None = on_start
        self._old = len(state.events())
        self._done = 0
        self._start = time.monotonic()
        self._failure: Exception | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Follower":
        if self._old:
            last = self.state.events()[-1]
            print(f"resuming at step {last['step']}, epoch {last['epoch']}", flush=True)
        if sys.stdout.isatty():
            self._open_bar()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._thread.join()
        if self._bar:
            self._bar.stop()
        if self._failure and error is None:
            raise self._failure

    def _follow(self) -> None:
        while not self._ending.wait(REMOTE_POLL_S if self.state.mirror.is_remote else POLL_S):
            self._look()
        self._look()

    def _look(self) -> None:
        if self._on_start and self.state.progress() is not None:
            self._on_start()
            self._on_start = None
        events = self.state.events()
        for index in range(self._done, len(events)):
            self._done = index + 1
            if index >= self._old:
                self._show(events[index])
            try:
                self.on_event(events[index])
            except Exception as error:
                self._failure = self._failure or error
        if self._bar:
            self._advance()

    def _show(self, event: Event) -> None:
        if self._bar:
            metrics = event["metrics"]
            self._bar.update(self._task, figures=self._figures(metrics))
        elif event["complete"]:
            left = self._seconds_left(event)
            speed = event["metrics"].get("images_per_s", float("nan"))
            ahead = "" if event["last"] else f"  {_clock(left)} left"
            print(
                f"epoch {self._of(event['epoch'])}  {self._figures(event['metrics'])}  "
                f"{speed:.1f} images/s{ahead}",
                flush=True,
            )

    def _figures(self, metrics: dict[str, float]) -> str:
        found = [(label, metrics.get(key, float("nan"))) for label, key in self.shown]
        return "  ".join(f"{label} {value:.4f}" for label, value in found if value == value)

    def _of(self, epoch: int) -> str:
        """The epoch, out of how many unless the clock ends the run."""
        return f"{epoch}/{self.epochs}" if self.max_minutes is None else str(epoch)

    def _seconds_left(self, event: Event) -> float:
        elapsed = time.monotonic() - self._start
        if self.max_minutes is not None:
            return max(0.0, 60 * self.max_minutes - elapsed)
        new = self._done - self._old
        return elapsed / max(1, new) * (self.epochs - int(event["epoch"]))

    def _open_bar(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}  {task.fields[speed]:.1f} images/s"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task(
            "train", total=None, epoch=self._of(1), figures="", speed=0.0
        )
        self._bar.start()

    def _advance(self) -> None:
        with suppress(TypeError, KeyError):  # nothing is told yet
            facts = self.state.progress() or {}
            total, completed = (
                (self.epochs * facts["steps"], facts["epoch"] * facts["steps"] + facts["step"])
                if self.max_minutes is None
                else (60 * self.max_minutes, time.monotonic() - self._start)
            )
            self._bar.update(
                self._task,
                total=total,
                completed=completed,
                epoch=self._of(facts["epoch"] + 1),
                speed=facts["images_per_s"],
            )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
