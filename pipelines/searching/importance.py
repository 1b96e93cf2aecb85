"""How much of the differences between trials each searched value explains."""

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.cluster.trial_facts import COMPLETED, Trial
from pipelines.params.space import Choice, Drawn, RandInt
from pipelines.params.tune import Objective

FEWEST = 6  # trials of full length; on fewer, trees say nothing


def importances(
    trials: Sequence[Trial], space: Mapping[str, Drawn], goal: Objective
) -> dict[str, float]:
    """Shares of the variance of the objective over the space, the largest first.

    Main effects of each value in a random forest that was fitted to the trials of full length (the
    others were measured after fewer epochs). Empty where they are fewer than FEWEST, or all alike.

    Args:
        trials: of the search.
        space: that they were drawn from.
        goal: first objective.

    Reference: Hutter, Hoos & Leyton-Brown 2014, An Efficient Approach for Assessing Hyperparameter
        Importance, ICML.
    """
    full = [trial for trial in trials if trial.outcome == COMPLETED]
    full = [trial for trial in full if trial.measured([goal.metric])]
    if len(full) < FEWEST or len({trial.figures[goal.metric] for trial in full}) < 2:
        return {}
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    distributions = {key: _distribution(drawn) for key, drawn in space.items()}
    for trial in full:
        values = {key: _value(trial.values[key], drawn) for key, drawn in space.items()}
        study.add_trial(
            optuna.trial.create_trial(
                params=values, distributions=distributions, value=trial.figures[goal.metric]
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0)))


def _distribution(drawn: Drawn) -> Any:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(drawn, Choice):
        return CategoricalDistribution([json.dumps(value) for value in drawn.values])
    if isinstance(drawn, RandInt):
        return IntDistribution(drawn.low, drawn.high - 1)
    return FloatDistribution(drawn.low, drawn.high, log=drawn.kind == "loguniform")


def _value(value: Any, drawn: Drawn) -> Any:
    return json.dumps(value) if isinstance(drawn, Choice) else value
