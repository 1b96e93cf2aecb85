"""Values that trials are given: Optuna's proposals, each for one trial or for several seeds."""

from collections.abc import Sequence
from typing import Any

import optuna
from ray.tune.search.optuna import OptunaSearch

from pipelines.params.tune import SEED, Objective, TuneParams


class Proposals(OptunaSearch):  # type: ignore[misc,unused-ignore]
    """Proposes values; with several seeds, a proposal is tried by as many trials in a row.

    Optuna is told the means over the seeds of a proposal, once all of them have ended; a trial
    without each figure counts as failed.

    Args:
        settings: of the search.
        first_seed: `train.seed` of the first trial of a proposal; the others count on.
    """

    def __init__(self, settings: TuneParams, *, first_seed: int) -> None:
        goals = settings.objectives
        single = len(goals) == 1
        super().__init__(
            metric=goals[0].key if single else [goal.key for goal in goals],
            mode=goals[0].mode if single else [goal.mode for goal in goals],
            sampler=_sampler(settings),
        )
        self._goals: tuple[Objective, ...] = goals
        self._seeds = settings.seeds
        self._first_seed = first_seed
        self._asked = 0
        self._proposal: tuple[str, dict[str, Any]] = ("", {})
        self._leaders: dict[str, str] = {}
        self._ended: dict[str, list[dict[str, float] | None]] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Values of the next trial, by dotted key."""
        place = self._asked % self._seeds
        if place == 0:
            values = super().suggest(trial_id)
            if values is None:
                return None
            self._proposal = (trial_id, values)
        self._asked += 1
        leader, values = self._proposal
        self._leaders[trial_id] = leader
        return values if self._seeds == 1 else {**values, SEED: self._first_seed + place}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Optuna prunes nothing here, so it is told the end alone."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna, once every seed of the proposal has ended."""
        leader = self._leaders[trial_id]
        group = self._ended.setdefault(leader, [])
        group.append(None if error else _figures(result or {}, self._goals))
        if len(group) < self._seeds:
            return
        good = [figures for figures in group if figures is not None]
        if good:
            means = {key: sum(one[key] for one in good) / len(good) for key in good[0]}
            super().on_trial_complete(leader, means)
        else:
            super().on_trial_complete(leader, None, error=True)


def _sampler(settings: TuneParams) -> Any:
    makers = {"optuna": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    return makers[settings.search](seed=settings.seed)


def _figures(result: dict[str, Any], goals: Sequence[Objective]) -> dict[str, float] | None:
    """The objectives of a result; None unless each is there."""
    values = {goal.key: float(result.get(goal.key, float("nan"))) for goal in goals}
    return values if all(value == value for value in values.values()) else None
