"""Every move of an alias of a registered model, with its evidence: a table that only grows.

The table is a run of its own in MLflow, a row is a param of it. A param cannot be changed, and of
two processes that write the same row the store lets one succeed; so rows are numbered without gaps
on sqlite, PostgreSQL and any server alike. A tag could be overwritten, an artifact replaced.
"""

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipelines.errors import TrackingError
from pipelines.tracking.connection import Connection
from pipelines.tracking.source import GIT_COMMIT, source_tags

EXPERIMENT = "segcore-registry-history"
OF_MODEL = "registered_model"
ROW = "move-"
LONGEST_ROW = 6000  # characters of a param; MLflow cuts off what is above
ATTEMPTS = 50


@dataclass(frozen=True)
class Evidence:
    """Why an alias was moved.

    Args:
        reason: in words.
        run_id: that found it out: of the evaluation, or of the training.
        figures: of the version.
        champion: the first of `figures`, of the version that was champion; None without one.
        interval: (low, high) of the difference.
        confidence: of the interval.
    """

    reason: str
    run_id: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    champion: float | None = None
    interval: tuple[float, float] | None = None
    confidence: float | None = None

    def text(self) -> str:
        """The first figure, that of the champion, and the interval of the difference."""
        if not self.figures:
            return ""
        name, value = next(iter(self.figures.items()))
        parts = [f"{name} {value:.4f}"]
        if self.champion is not None and self.interval is not None:
            low, high = self.interval
            parts.append(f"against {self.champion:.4f}: {low:+.4f} to {high:+.4f}")
            parts.append(f"at {self.confidence:.0%}" if self.confidence else "")
        return " ".join(part for part in parts if part)


@dataclass(frozen=True)
class Move:
    """A row of the history.

    Args:
        number: from 1 on.
        time: when, ISO 8601 in UTC.
        alias: that was moved.
        version, previous: it points to, and pointed to; "" for none.
        digest: of the version's package.
        user, commit: who, with which code; "" where that is not known.
        evidence: why.
        undone: before the next move the alias pointed elsewhere: this one was cut short, or
            somebody moved the alias by other means.
    """

    number: int
    time: str
    alias: str
    version: str
    previous: str
    digest: str
    user: str
    commit: str
    evidence: Evidence
    undone: bool = False

    def cells(self) -> tuple[str, ...]:
        """Number, time, alias, version, figures, who, run, commit and reason, to be read."""
        way = f"{self.previous} -> {self.version}" if self.previous else self.version
        return (
            str(self.number),
            self.time.partition(".")[0].replace("T", " "),
            self.alias,
            f"{way} (not for long)" if self.undone else way,
            self.evidence.text(),
            self.user,
            self.evidence.run_id[:8],
            self.commit[:8],
            self.evidence.reason,
        )


class History:
    """The moves of one registered model's aliases.

    Args:
        connection: to the store.
        name: of the registered model.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self._client = connection.client
        self._uri = connection.uri
        self._connection = connection
        self._name = name

    def moves(self) -> list[Move]:
        """All of them, the oldest first."""
        rows = [row for run in self._runs() for row in run.data.params.items()]
        found = sorted((_move(*row) for row in rows if row[0].startswith(ROW)), key=_order)
        after: dict[str, str] = {}
        for place in reversed(range(len(found))):
            move = found[place]
            undone = after.get(move.alias, move.version) != move.version
            found[place] = Move(**{**vars(move), "undone": undone})
            after[move.alias] = move.previous
        return found

    def append(
        self, alias: str, *, version: str, previous: str, digest: str, evidence: Evidence
    ) -> None:
        """Write a row; it is there for good when this returns.

        Raises:
            TrackingError: the store refuses.
        """
        from mlflow.exceptions import MlflowException

        tags = source_tags()
        record = {
            "id": uuid.uuid4().hex,  # no two rows are alike
            "time_ns": time.time_ns(),
            "alias": alias,
            "version": version,
            "previous": previous,
            "digest": digest,
            "user": tags.get("mlflow.user", ""),
            "commit": tags.get(GIT_COMMIT, ""),
        }
        row = _fit(record, evidence)
        run_id = self._own_run()
        for _ in range(ATTEMPTS):
            taken = self._client.get_run(run_id).data.params
            key = f"{ROW}{1 + sum(name.startswith(ROW) for name in taken):06d}"
            try:
                self._client.log_param(run_id, key, row)
                return
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                failure = error  # another process was faster
        raise TrackingError(f"MLflow at {self._uri} takes no row of the history: {failure}")

    def _runs(self) -> list[Any]:
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return []
        query = f"tags.{OF_MODEL} = '{self._name}'"
        found = self._client.search_runs([experiment.experiment_id], query)
        return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))

    def _own_run(self) -> str:
        """The run that holds the table; the first, should two processes have made one at once."""
        if not self._runs():
            place = self._connection.experiment(EXPERIMENT)
            made = self._client.create_run(place, run_name=self._name, tags={OF_MODEL: self._name})
            self._client.set_terminated(made.info.run_id)
        return str(self._runs()[0].info.run_id)


def _fit(record: Mapping[str, Any], evidence: Evidence) -> str:
    """A row as JSON; of a reason and figures that are too long, the first parts."""
    reason, figures = evidence.reason, list(evidence.figures.items())
    while True:
        facts = {**asdict(evidence), "reason": reason, "figures": dict(figures)}
        row = json.dumps({**record, "evidence": facts})
        if len(row) <= LONGEST_ROW or not (reason or figures):
            return row
        figures = figures[: max(1, len(figures) // 2)] if reason else []
        reason = reason[: len(reason) // 2]


def _order(move: Move) -> tuple[int, str]:
    return move.number, move.time  # clocks of machines differ


def _move(key: str, value: str) -> Move:
    record = json.loads(value)
    evidence = record["evidence"]
    if evidence["interval"] is not None:
        evidence["interval"] = tuple(evidence["interval"])
    moment = datetime.fromtimestamp(record["time_ns"] / 1e9, UTC)
    return Move(
        number=int(key.removeprefix(ROW)),
        time=moment.isoformat(timespec="milliseconds"),
        alias=record["alias"],
        version=record["version"],
        previous=record["previous"],
        digest=record["digest"],
        user=record["user"],
        commit=record["commit"],
        evidence=Evidence(**evidence),
    )
