"""From facts to a plan: each rule in turn, the user's own values untouched."""

from collections.abc import Mapping
from typing import Any

from pipelines.params import Params
from pipelines.params.planned import open_keys
from pipelines.params.section import AUTO
from pipelines.planning.facts import Decision, Facts, StepTimer
from pipelines.planning.rules import RULES, options_of_start
from segcore.errors import OptionError
from segcore.machine import Machine

YOURS = "set in params.yaml"


def decide(
    params: Params,
    fingerprint: Mapping[str, Any],
    machine: Machine,
    time_step: StepTimer,
    *,
    task: str = "semantic",
) -> dict[str, Decision]:
    """A decision for every key that has a rule.

    Args:
        params: as written; what is not `auto` wins.
        fingerprint: of the dataset.
        machine: that will train.
        time_step: seconds of a step under given settings.
        task: kind of task that is trained.

    Raises:
        OptionError: a key is auto that no rule decides.
    """
    unknown = [key for key in open_keys(params) if key not in RULES]
    if unknown:
        raise OptionError(
            f"{unknown[0]} is auto, but no rule decides it: give it a value. auto may be "
            f"{', '.join(RULES)}"
        )
    facts = Facts(fingerprint, machine, params, time_step, task)
    decisions: dict[str, Decision] = {}
    given = _flat(params)
    for key, rule in RULES.items():
        value = given.get(key)
        decision = rule(facts) if value == AUTO else Decision(value, YOURS, ("you",))
        decisions[key], facts.settings[key] = decision, decision.value
        if key == "model.name":
            more = options_of_start(facts).items()
            own = {key: entry for key, entry in more if key not in given}
            decisions |= own
            facts.settings |= {key: entry.value for key, entry in own.items()}
    return decisions


def _flat(params: Params) -> dict[str, Any]:
    flat = params.flat()
    options = flat.pop("model.options")
    return {**flat, **{f"model.options.{name}": value for name, value in options.items()}}
