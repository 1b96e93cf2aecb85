"""Trials on the driver: their MLflow runs, each closed in its true state, and their errors."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from ray.tune import Callback, Stopper

from pipelines.cluster.tune import TRIALS
from pipelines.mirror import Mirror
from pipelines.storage import write_atomic
from pipelines.tracking.names import trial_name
from pipelines.tracking.run import Run
from pipelines.training import failure
from segcore.engine.meter import NonFiniteLossError
from segcore.errors import SegcoreError

RUNS = "runs.json"
CONTROLLER, SUMMARY = "ray.tune.execution.tune_controller", "ray.tune.tune"


class UntilFailure(Stopper):  # type: ignore[misc,unused-ignore]
    """Ends the search once `Trials` has found an error that other values would not mend.

    Args:
        search: folder of it.
    """

    def __init__(self, search: Mirror) -> None:
        self.search = search

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether one trial is to stop; that is left to the scheduler."""
        return False

    def stop_all(self) -> bool:
        """Whether every trial is to stop."""
        return failure.read(self.search) is not None


def reason(error: Any) -> str:
    """What a trial's exception says, in one line, without Ray's words around it."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).strip().splitlines() if line.strip()]
    if isinstance(cause, SegcoreError):
        return " ".join(lines)
    return lines[-1] if lines else type(cause).__name__


def quiet_known_errors() -> None:
    """Keep Ray from printing what `Trials` says in a line; the traceback of a bug stays."""
    for name in (CONTROLLER, SUMMARY):
        logging.getLogger(name).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    known = isinstance(getattr(error, "cause", None) or error, SegcoreError)
    return not known and not str(record.msg).startswith("Trials did not complete")


class Trials(Callback):  # type: ignore[misc,unused-ignore]
    """Opens a child run per trial, logs its epochs, and closes it.

    Ray stores this object with the search and brings it back after a kill, so it holds plain
    values; which run belongs to which trial is in a file.

    Args:
        search: folder of it.
        parent_id: run of the search.
        epochs: of a trial that is not stopped early.
        metric: that trials are compared by.
    """

    _parent: ClassVar[Run | None] = None
    _listeners: ClassVar[list[Callable[[], None]]] = []
    _open: ClassVar[dict[str, Run]] = {}

    def __init__(self, search: Mirror, parent_id: str, epochs: int, metric: str) -> None:
        self.search = search
        self.parent_id = parent_id
        self.epochs = epochs
        self.metric = metric

    @contextmanager
    def watched(self, run: Run, on_epoch: Callable[[], None]) -> Iterator[None]:
        """Give the callbacks of this process their connection; close what is open at the end.

        A run still open then belongs to a trial that was killed with the search, or to one that
        was begun so shortly before a kill that the search forgot it.
        """
        cls = type(self)
        cls._parent = run
        cls._listeners.append(on_epoch)
        try:
            yield
        finally:
            for child in cls._open.values():
                child.close("KILLED")
            cls._open.clear()
            cls._listeners.clear()
            cls._parent = None
            run.end_children("KILLED")

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Open the trial's run, or the one that it had before a kill."""
        self._run(trial)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Any],
        trial: Any,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Log an epoch."""
        numbers = {key: value for key, value in result.items() if "/" in key or key == "lr"}
        values = {k: v for k, v in numbers.items() if isinstance(v, (int, float))}
        self._run(trial).log_metrics(values, int(result["epoch"]))
        for tell in self._listeners:
            tell()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close the run: FINISHED at its full length, KILLED if it was stopped before."""
        last = trial.last_result or {}
        full = last.get("epoch", 0) >= self.epochs
        self._end(trial, "FINISHED" if full else "KILLED", "completed" if full else "pruned")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close the run as FAILED, and say why.

        A loss that is not finite is the trial's own; any other error that the user can mend ends
        the search.
        """
        error = failure.read(self.search / f"{TRIALS}/{trial.trial_id}")
        self._end(trial, "FAILED", "failed", why=reason(error) if error else None)
        if error is not None and not isinstance(error, NonFiniteLossError):
            failure.write(self.search, error)

    def _end(self, trial: Any, status: str, outcome: str, *, why: str | None = None) -> None:
        run = self._run(trial)
        run.set_tags({"outcome": outcome, "error": why})
        run.close(status)
        self._open.pop(trial.trial_id, None)
        last = trial.last_result or {}
        value = last.get(self.metric, float("nan"))
        name = trial_name(_values(trial.config))
        print(
            f"trial {trial.trial_id} {name}: {outcome} after {last.get('epoch', 0)} epochs"
            + (f": {why}" if why else f", {self.metric} {value:.4f}"),
            flush=True,
        )

    def _run(self, trial: Any) -> Run:
        if trial.trial_id not in self._open:
            parent = self._parent
            if parent is None:
                raise RuntimeError("Trials is used outside of `watched`")
            known = json.loads(self.search.read(RUNS) or b"{}")
            values = _values(trial.config)
            tags = {"trial": trial.trial_id}
            child = parent.child(trial_name(values), values, tags, known.get(trial.trial_id))
            self._open[trial.trial_id] = child
            folder = self.search.folder
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / RUNS, json.dumps({**known, trial.trial_id: child.id}).encode())
            self.search.push(RUNS)
        return self._open[trial.trial_id]


def _values(config: dict[str, Any]) -> dict[str, Any]:
    return {k: json.loads(v) if isinstance(v, str) else v for k, v in config.items()}
