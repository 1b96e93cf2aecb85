"""outputs/plan.yaml: written only when a decision changes, so that nothing reruns without cause."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from pipelines.planning.facts import Decision
from pipelines.storage import write_atomic
from segcore.machine import Machine

HEADER = "# What the stage plan decided, and why. Values of your own go into params.yaml.\n"


def write_plan(
    file: Path, decisions: Mapping[str, Decision], *, dataset: Mapping[str, str], machine: Machine
) -> bool:
    """Write a plan, unless it is there already; says whether it was written."""
    lines = [HEADER, yaml.safe_dump({"dataset": dict(dataset), "machine": machine.to_json()})]
    lines.append("decisions:\n")
    for key, entry in decisions.items():
        fields = {"value": entry.value, "why": entry.why, "from": list(entry.sources)}
        text = yaml.safe_dump(fields, default_flow_style=True, sort_keys=False, width=10**6)
        lines.append(f"  {key}: {text}")
    content = "".join(lines).encode()
    if file.is_file() and file.read_bytes() == content:
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, content)
    return True


def rows(decisions: Mapping[str, Decision]) -> list[tuple[str, str, str]]:
    """(key, value, reason) of each decision, as text."""
    return [(key, text(entry.value), entry.why) for key, entry in decisions.items()]


def text(value: Any) -> str:
    """A value as it would be written in params.yaml."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def to_json(decisions: Mapping[str, Decision]) -> dict[str, Any]:
    """Decisions by key, as JSON values."""
    return {key: asdict(entry) for key, entry in decisions.items()}
