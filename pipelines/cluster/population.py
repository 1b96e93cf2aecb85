"""Population based training: poor trials go on with the weights and changed values of good ones.

Reference: Jaderberg et al. 2017, arXiv:1711.09846.
"""

from collections.abc import Mapping
from typing import Any

from ray.tune.schedulers import PopulationBasedTraining

from pipelines.cluster.trials import Trials
from pipelines.params.space import Choice, Drawn, RandInt, Uniform
from pipelines.params.tune import TuneParams


class Population(PopulationBasedTraining):  # type: ignore[misc,unused-ignore]
    """Ray's scheduler, whose changes stay within `tune.space`, and are recorded.

    The worse quarter takes over from the better quarter. A number is multiplied by 0.8 or 1.2, a
    choice moves to its neighbour, either is drawn anew in a quarter of the cases. Trials are
    compared by the first objective.

    Args:
        settings: of the search.
        space: what may change.
        mutations: the same as Ray takes it.
        trials: that record who took over from whom.
    """

    def __init__(
        self,
        settings: TuneParams,
        space: Mapping[str, Drawn],
        mutations: Mapping[str, Any],
        trials: Trials,
    ) -> None:
        goal = settings.objectives[0]
        super().__init__(
            time_attr="epoch",
            metric=goal.key,
            mode=goal.mode,
            perturbation_interval=settings.grace_epochs,
            hyperparam_mutations=dict(mutations),
            log_config=False,
        )
        self._space = dict(space)
        self._trials = trials

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[Any, Any]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        bounded = {
            key: _within(value, self._space[key]) if key in self._space else value
            for key, value in config.items()
        }
        self._trials.took_over(trial, trial_to_clone, bounded)
        return bounded, operations


def _within(value: Any, drawn: Drawn) -> Any:
    """The value, or the end of its range that it passed."""
    if isinstance(drawn, Choice):
        return value
    if isinstance(drawn, RandInt):
        return int(min(max(round(value), drawn.low), drawn.high - 1))
    return _clipped(value, drawn)


def _clipped(value: float, drawn: Uniform) -> float:
    return float(min(max(value, drawn.low), drawn.high))
