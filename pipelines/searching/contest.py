"""Which value of a choice is better on these data, and whether that is more than chance."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.cluster.trial_facts import COMPLETED, Trial
from pipelines.params import Params
from pipelines.params.space import Choice
from pipelines.params.tune import Objective
from pipelines.scoring import bootstrap
from pipelines.scoring.records import record_schema
from pipelines.searching.choose import Setup, setups
from segcore.tasks import Kind

CONFIDENCE = 0.95
RESAMPLES = 2000
Floats = NDArray[np.float64]


class Scored:
    """Trials of the same values on single validation images.

    Args:
        setup: trials with records of the same images.
        kind: of the task.
        dataset: that was searched on.
        metric: a figure of the kind.
    """

    def __init__(self, setup: Setup, kind: Kind, dataset: Any, metric: str) -> None:
        self.setup = setup
        self._kind = kind
        self._metric = metric
        schema = record_schema(kind)
        tables = [read(trial.records or b"", schema) for trial in setup.trials]
        self.ids: list[str] = tables[0].column("id").to_pylist()
        self._records = [kind.records(table, dataset) for table in tables]

    def weighted(self, weights: Floats) -> Floats:
        """The figure [R] under weights of the images [R, B], a mean over the trials."""
        figures = np.stack([self._of(records, weights) for records in self._records])
        return np.asarray(figures.mean(0), dtype=np.float64)

    @cached_property
    def by_seed(self) -> list[float]:
        """The figure of each trial on all images."""
        whole = np.ones((1, len(self.ids)))
        return [float(self._of(records, whole)[0]) for records in self._records]

    @property
    def figure(self) -> float:
        return sum(self.by_seed) / len(self.by_seed)

    def _of(self, records: Any, weights: Floats) -> Floats:
        return self._kind.figures(records, weights)[self._metric]


@dataclass(frozen=True)
class Rival:
    """A value with the best trials that have it.

    Args:
        value: of the choice, as it is written.
        scored: its trials; None where none reached its full length.
        behind: how much better the leader is; None of the leader.
    """

    value: str
    scored: Scored | None
    behind: bootstrap.Comparison | None = None


@dataclass(frozen=True)
class Contest:
    """The values of a choice, the best first.

    Args:
        key: of params.
        metric: that they are compared by.
        rivals: at least two.
        seeds: by how much two seeds of the same values differ at most; None where none has two.
    """

    key: str
    metric: str
    rivals: tuple[Rival, ...]
    seeds: float | None

    @property
    def images(self) -> int:
        """Validation images on which they are compared."""
        return len(self.rivals[0].scored.ids) if self.rivals[0].scored else 0

    @property
    def second(self) -> bootstrap.Comparison | None:
        """The leader against the one behind it."""
        return self.rivals[1].behind

    @property
    def drowned(self) -> bool:
        """Whether two seeds differ more than the two best values."""
        if self.seeds is None or self.second is None:
            return False
        return self.seeds >= abs(self.second.difference)

    @property
    def verdict(self) -> str:
        """The answer, in a sentence."""
        first, second = self.rivals[0], self.rivals[1]
        if self.second is None:
            return f"No trial with another value than {first.value} reached its full length"
        names = f"{first.value} and {second.value}"
        if self.drowned:
            return f"{names} are not told apart: the seed alone changes more"
        if not self.second.low > 0.0:
            return f"{names} are not told apart on these images"
        return f"{first.value} is better than {second.value}"


def contests(trials: Sequence[Trial], params: Params, dataset: Any, kind: Kind) -> list[Contest]:
    """One for each choice of `tune.space` of which two values were tried.

    Args:
        trials: of the search.
        params: of it.
        dataset: that was searched on.
        kind: of the task.
    """
    first = params.tune.objectives[0]
    metric = first.metric if first.metric in kind.figure_names else kind.headline
    goal = Objective(metric, kind.mode(metric))
    full = [one for one in trials if one.outcome == COMPLETED and one.records is not None]
    scored = [Scored(setup, kind, dataset, metric) for setup in setups(full, [first.metric])]
    scored = [one for one in scored if one.figure == one.figure]
    found = [
        _contest(key, goal, trials, [one for one in scored if key in one.setup.values])
        for key, entry in params.search_space().items()
        if isinstance(entry, Choice)
    ]
    return [contest for contest in found if contest is not None]


def _contest(
    key: str, goal: Objective, trials: Sequence[Trial], scored: Sequence[Scored]
) -> Contest | None:
    tried = {written(trial.values[key]) for trial in trials if key in trial.values}
    best: dict[str, Scored] = {}
    for one in sorted(scored, key=lambda one: -goal.sign * one.figure):
        best.setdefault(written(one.setup.values[key]), one)
    if len(tried) < 2 or not best:
        return None
    leader, *others = best.items()
    rivals = [Rival(*leader)]
    rivals += [Rival(value, one, _compare(leader[1], one, goal)) for value, one in others]
    rivals += [Rival(value, None) for value in sorted(tried - set(best))]
    spreads = [max(one.by_seed) - min(one.by_seed) for one in scored if len(one.by_seed) > 1]
    return Contest(key, goal.metric, tuple(rivals), max(spreads, default=None))


def _compare(leader: Scored, other: Scored, goal: Objective) -> bootstrap.Comparison:
    return bootstrap.compare(
        leader.weighted,
        other.weighted,
        images=len(leader.ids),
        margin=0.0,
        confidence=CONFIDENCE,
        resamples=RESAMPLES,
        seed=0,
        mode=goal.mode,
    )


def read(records: bytes, schema: pa.Schema) -> pa.Table:
    """The records of a trial."""
    return pq.read_table(io.BytesIO(records)).cast(schema)


def written(value: Any) -> str:
    """A value of a choice in one word or one mapping."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
