"""How far a long step is: a bar with rate and remaining time on a terminal, else plain lines."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_S = 10.0

Advance = Callable[[int], None]


@contextmanager
def progress(title: str, total: int, *, unit: str = "images") -> Iterator[Advance]:
    """Show the progress of a step on stderr.

    Args:
        title: the step.
        total: units of work in all.
        unit: plural, for the rate.

    Yields:
        A function to call with the number of units that were just done.
    """
    if sys.stderr.isatty():
        with _bar(title, total, unit) as advance:
            yield advance
    else:
        lines = _Lines(title, total, unit)
        yield lines.advance
        lines.end()


@contextmanager
def _bar(title: str, total: int, unit: str) -> Iterator[Advance]:
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("[bold]{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn(f"{{task.fields[rate]}} {unit}/s"),
        rich.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    start = time.monotonic()
    with rich.Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=total, rate="-")

        def advance(units: int) -> None:
            done = bars.tasks[task].completed + units
            rate = done / max(time.monotonic() - start, 1e-9)
            bars.update(task, advance=units, rate=f"{rate:.1f}")

        yield advance


class _Lines:
    """One line each `LINE_S` seconds and one at the end."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = 0
        self._start = self._said = time.monotonic()

    def advance(self, units: int) -> None:
        self._done += units
        now = time.monotonic()
        if now - self._said >= LINE_S:
            self._said = now
            rate = self._done / (now - self._start)
            left = (self._total - self._done) / max(rate, 1e-9)
            self._say(f"{rate:.1f} {self._unit}/s, {left:.0f} s left")

    def end(self) -> None:
        elapsed = time.monotonic() - self._start
        self._say(f"{self._done / max(elapsed, 1e-9):.1f} {self._unit}/s, {elapsed:.1f} s")

    def _say(self, rest: str) -> None:
        count = f"{self._done}/{self._total} {self._unit}"
        print(f"{self._title}: {count}, {rest}", file=sys.stderr, flush=True)
