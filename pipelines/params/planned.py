"""Params with the values of the plan in place of `auto`."""

from pathlib import Path
from typing import Any

from pipelines.params.file import read_yaml
from pipelines.params.schema import Params
from pipelines.params.section import AUTO
from pipelines.storage import absolute
from segcore.errors import OptionError

PLAN = Path("outputs/plan.yaml")
# These follow the kind of task or each worker's machine, where they are auto, not the plan.
DECIDED_LATER = {"tune.metric", "tune.mode", "train.loader_workers"}
# Sections that the plan decides; in evaluate and predict `auto` may stand until the work is done.
SECTIONS = ("model", "loss", "train", "tune")


def load_planned(path: Path | str = "params.yaml") -> Params:
    """Read params.yaml, and the plan for what is `auto` there.

    Raises:
        OptionError: as `Params.load`; or there is no plan, or one that leaves a value open.
    """
    params = Params.load(path)
    return apply_plan(params, read_plan()) if open_keys(params) else params


def read_plan() -> dict[str, Any]:
    """Decisions of the plan by dotted key, each with `value`, `why` and `from`.

    Raises:
        OptionError: there is none.
    """
    file = absolute(PLAN)
    if not file.is_file():
        raise OptionError(
            f"{PLAN} is missing, and params.yaml has values that are auto: run "
            "`python -m pipelines.plan`, or `dvc repro`"
        )
    return dict(read_yaml(file)["decisions"])


def open_keys(params: Params) -> list[str]:
    """Dotted keys of the planned sections whose value is still `auto`."""
    flat = params.flat()
    flat_auto = [key for key, value in flat.items() if value == AUTO and key not in DECIDED_LATER]
    keys = [key for key in flat_auto if key.split(".")[0] in SECTIONS]
    options = flat["model.options"].items()
    return keys + [f"model.options.{name}" for name, value in options if value == AUTO]


def apply_plan(params: Params, decisions: dict[str, Any]) -> Params:
    """A copy in which every `auto` has the value that was decided.

    With a planned architecture come options that params.yaml does not list; what is set there wins.

    Raises:
        OptionError: a value stays open.
    """
    keys = open_keys(params)
    missing = [key for key in keys if key not in decisions]
    if missing:
        raise OptionError(
            f"{missing[0]} is auto, and {PLAN} does not decide it: run `python -m pipelines.plan` "
            "again, or give it a value"
        )
    if params.model.name == AUTO:
        options = params.model.options
        prefix = "model.options."
        keys += [
            key
            for key in decisions
            if key.startswith(prefix)
            and key not in keys
            and key.removeprefix(prefix) not in options
            and decisions[key]["value"] is not None
        ]
    return params.override({key: decisions[key]["value"] for key in keys})
