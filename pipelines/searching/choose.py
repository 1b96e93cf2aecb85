"""Which trial's values training takes, and which trials no other one beats."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.cluster.trial_facts import COMPLETED, Trial
from pipelines.params.tune import SEED, Objective, TuneParams


@dataclass(frozen=True)
class Setup:
    """Trials of the same values, which differ in their seeds at most.

    Args:
        values: that they share, by dotted key.
        trials: at least one.
    """

    values: dict[str, Any]
    trials: tuple[Trial, ...]

    def figure(self, metric: str) -> float:
        """Mean over the trials."""
        return sum(trial.figures[metric] for trial in self.trials) / len(self.trials)


def setups(trials: Sequence[Trial], metrics: Sequence[str]) -> list[Setup]:
    """Trials that have every figure, by their values without `train.seed`."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.measured(list(metrics)):
            groups.setdefault(json.dumps(without_seed(trial), sort_keys=True), []).append(trial)
    return [Setup(without_seed(group[0]), tuple(group)) for group in groups.values()]


def without_seed(trial: Trial) -> dict[str, Any]:
    """Values of a trial but for its seed."""
    return {key: value for key, value in trial.values.items() if key != SEED}


@dataclass(frozen=True)
class Choice:
    """What training takes over.

    Args:
        trial: the best; of several seeds, the best of the best values.
        overrides: values by dotted key.
        figures: by metric, means over the seeds.
        note: how it came to be chosen, a sentence.
    """

    trial: Trial
    overrides: dict[str, Any]
    figures: dict[str, float]
    note: str


def choose(trials: Sequence[Trial], settings: TuneParams) -> Choice:
    """The best in the first objective among those within the limits of `tune.choose`.

    With `tune.seeds` above 1, values are compared by their means over the seeds, and the seed is
    none of them; else each trial stands for itself. Where no trial is within the limits, that one
    is taken which exceeds them least, in proportion, and a warning says so.

    Args:
        trials: one of them has every objective.
        settings: of the search.
    """
    goals = settings.objectives
    metrics = [goal.metric for goal in goals]
    if settings.seeds > 1:
        found = setups(trials, metrics)
    else:
        found = [Setup(trial.values, (trial,)) for trial in trials if trial.measured(metrics)]
    first = goals[0]
    excess = [_excess(setup, settings, goals) for setup in found]
    within = [setup for setup, over in zip(found, excess, strict=True) if over <= 0.0]
    if within:
        best = max(within, key=lambda setup: first.sign * setup.figure(first.metric))
        note = f"best {first.metric}"
        if settings.choose:
            note += f" of {len(within)} of {len(found)} within tune.choose ({_limits(settings)})"
    else:
        best = found[min(range(len(found)), key=excess.__getitem__)]
        note = f"nearest to tune.choose ({_limits(settings)}), within which there is none"
        print(f"warning: the values that are taken are {note}", file=sys.stderr, flush=True)
    leader = max(best.trials, key=lambda trial: first.sign * trial.figures[first.metric])
    return Choice(leader, best.values, {name: best.figure(name) for name in metrics}, note)


def front(trials: Sequence[Trial], goals: Sequence[Objective]) -> list[Trial]:
    """Trials of full length that no other beats: in one objective better, in none worse."""
    full = [trial for trial in trials if trial.outcome == COMPLETED]
    full = [trial for trial in full if trial.measured([goal.metric for goal in goals])]
    scores = [[goal.sign * trial.figures[goal.metric] for goal in goals] for trial in full]
    return [
        trial
        for trial, own in zip(full, scores, strict=True)
        if not any(
            all(a >= b for a, b in zip(other, own, strict=True)) and other != own
            for other in scores
        )
    ]


def _excess(setup: Setup, settings: TuneParams, goals: Sequence[Objective]) -> float:
    """By what share the worst limit is exceeded; 0 or less where none is."""
    by_name = {goal.metric: goal for goal in goals}
    return max(
        (
            -by_name[name].sign * (setup.figure(name) - limit) / (abs(limit) or 1.0)
            for name, limit in settings.choose.items()
        ),
        default=0.0,
    )


def _limits(settings: TuneParams) -> str:
    signs = {"max": ">=", "min": "<="}
    modes = {goal.metric: goal.mode for goal in settings.objectives}
    return ", ".join(f"{name} {signs[modes[name]]} {x:g}" for name, x in settings.choose.items())
