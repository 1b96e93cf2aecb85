"""Trials on the driver: their MLflow runs, each closed in its true state, and their errors."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, ClassVar

from ray.exceptions import RayActorError
from ray.tune import Callback, Stopper

from pipelines.cluster import held
from pipelines.cluster.trial import TRIALS
from pipelines.cluster.trial_facts import COMPLETED, FAILED, PRUNED, RECORDS, Trial, values_of
from pipelines.mirror import Mirror
from pipelines.params.tune import TuneParams
from pipelines.storage import write_atomic
from pipelines.tracking.names import trial_name
from pipelines.tracking.run import Run
from pipelines.training import failure
from segcore.engine.meter import NonFiniteLossError
from segcore.errors import SegcoreError

RUNS, ENDED, TAKEN = "runs.json", "ended.json", "taken.json"
CONTROLLER, SUMMARY = "ray.tune.execution.tune_controller", "ray.tune.tune"


class UntilFailure(Stopper):  # type: ignore[misc,unused-ignore]
    """Ends a trial at its full length, and the search once an error that no values would mend is
    found.

    Args:
        search: folder of it.
        epochs: of a trial.
    """

    def __init__(self, search: Mirror, epochs: int) -> None:
        self.search = search
        self.epochs = epochs

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a trial is to stop; before its full length that is left to the scheduler."""
        return bool(result.get("done")) or result.get("epoch", 0) >= self.epochs

    def stop_all(self) -> bool:
        """Whether every trial is to stop."""
        return failure.read(self.search) is not None


def reason(error: Any) -> str:
    """What a trial's exception says, in one line, without Ray's words around it."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, RayActorError):
        return "its process died, more often than cluster.max_failures allows"
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
    known = isinstance(getattr(error, "cause", None) or error, (SegcoreError, RayActorError))
    return not known and not str(record.msg).startswith("Trials did not complete")


class Trials(Callback):  # type: ignore[misc,unused-ignore]
    """Opens a child run per trial, logs its epochs, closes it, and writes down how it ended.

    Ray stores this object with the search and brings it back after a kill, so it holds plain
    values; which run belongs to which trial is in a file.

    Args:
        search: folder of it.
        parent_id: run of the search.
        settings: of it.
    """

    _parent: ClassVar[Run | None] = None
    _listeners: ClassVar[list[Callable[[], None]]] = []
    _open: ClassVar[dict[str, Run]] = {}
    _told: ClassVar[dict[str, int]] = {}
    _rooms: ClassVar[held.Rooms] = held.Rooms()

    def __init__(self, search: Mirror, parent_id: str, settings: TuneParams) -> None:
        self.search = search
        self.parent_id = parent_id
        self.epochs = settings.epochs
        self.metrics = [goal.metric for goal in settings.objectives]

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
            cls._told.clear()
            cls._listeners.clear()
            cls._parent = None
            run.end_children("KILLED")

    def ended(self) -> list[Trial]:
        """The trials that ended, in the order in which they began."""
        facts = self._facts(ENDED)
        known = [Trial(**facts[name]) for name in self._facts(RUNS) if name in facts]
        place = f"{TRIALS}/{{}}/{RECORDS}"
        return [replace(one, records=self.search.read(place.format(one.id))) for one in known]

    def took_over(self, trial: Any, other: Any, config: dict[str, Any]) -> None:
        """Write down that a trial goes on with another's weights, and with which values."""
        names = (trial.trial_id, other.trial_id)
        print(
            "trial {} takes over from {}: ".format(*names) + trial_name(values_of(config)),
            flush=True,
        )
        known = self._facts(TAKEN)
        taken = [*known.get(trial.trial_id, []), other.trial_id]
        self._write(TAKEN, {**known, trial.trial_id: taken})

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Give back what groups of trials that are over have left."""
        self._rooms.free()

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
        epoch = int(result["epoch"])
        self._run(trial).log_metrics(values, epoch)
        if epoch <= self._told.get(trial.trial_id, 0):
            return  # an epoch that a trial repeats after a kill
        self._told[trial.trial_id] = epoch
        for tell in self._listeners:
            tell()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close the run: FINISHED at its full length, KILLED if it was stopped before.

        A trial that left an error is FAILED, and says why. A loss that is not finite is the
        trial's own; any other error that the user can mend ends the search.
        """
        error = failure.read(self.search / f"{TRIALS}/{trial.trial_id}")
        if error is not None:
            self._end(trial, "FAILED", FAILED, why=reason(error))
            if not isinstance(error, NonFiniteLossError):
                failure.write(self.search, error)
            return
        full = (trial.last_result or {}).get("epoch", 0) >= self.epochs
        self._end(trial, "FINISHED" if full else "KILLED", COMPLETED if full else PRUNED)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close the run as FAILED: the trial's process died too often, or has a bug."""
        self._end(
            trial, "FAILED", FAILED, why=reason(trial.get_pickled_error() or trial.get_error())
        )

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial is started again."""
        error = trial.get_pickled_error() or trial.get_error()  # of a lost process Ray keeps none
        died = error is None or isinstance(error, RayActorError)
        why = "its process died" if died else reason(error)
        self._rooms.leave(self.search / f"{TRIALS}/{trial.trial_id}")
        print(f"trial {trial.trial_id}: {why}; it goes on from its checkpoint", flush=True)

    def _end(self, trial: Any, status: str, outcome: str, *, why: str | None = None) -> None:
        self._rooms.leave(self.search / f"{TRIALS}/{trial.trial_id}")
        run = self._run(trial)
        taken = self._facts(TAKEN).get(trial.trial_id, [])
        values, last = values_of(trial.config), trial.last_result or {}
        changed = {f"final.{key}": value for key, value in values.items()} if taken else {}
        run.set_tags({"outcome": outcome, "error": why, **changed})
        figures = {name: last[f"val/{name}"] for name in self.metrics if f"val/{name}" in last}
        ended = Trial(
            id=trial.trial_id,
            run_id=run.id,
            values=values,
            epochs=int(last.get("epoch", 0)),
            outcome=outcome,
            figures=figures,
            why=why,
            took_over=taken,
        )
        self._write(ENDED, {**self._facts(ENDED), trial.trial_id: asdict(ended)})
        run.close(status)
        self._open.pop(trial.trial_id, None)
        shown = ", ".join(f"val/{name} {value:.4g}" for name, value in figures.items())
        print(
            f"trial {trial.trial_id} {trial_name(values)}: {outcome} after {ended.epochs} epochs"
            + (f": {why}" if why else f", {shown}"),
            flush=True,
        )

    def _run(self, trial: Any) -> Run:
        if trial.trial_id not in self._open:
            parent = self._parent
            if parent is None:
                raise RuntimeError("Trials is used outside of `watched`")
            known = self._facts(RUNS)
            values = values_of(trial.config)
            tags = {"trial": trial.trial_id}
            child = parent.child(trial_name(values), values, tags, known.get(trial.trial_id))
            self._open[trial.trial_id] = child
            self._write(RUNS, {**known, trial.trial_id: child.id})
        return self._open[trial.trial_id]

    def _facts(self, name: str) -> dict[str, Any]:
        return dict(json.loads(self.search.read(name) or b"{}"))

    def _write(self, name: str, facts: dict[str, Any]) -> None:
        self.search.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.search.folder / name, json.dumps(facts).encode())
        self.search.push(name)
