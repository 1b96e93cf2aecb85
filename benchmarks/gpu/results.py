"""The answers so far: rows by part, as JSON and as Markdown."""

import fcntl
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.bench import Bench, Row

FILE = "gpu.json"


def machine(bench: Bench) -> dict[str, Any]:
    """What a figure depends on: a row of another machine is another row."""
    cards = torch.cuda.device_count() if bench.device == "cuda" else 0
    name = torch.cuda.get_device_name() if cards else f"CPU, {platform.machine()}"
    return {
        "device": bench.device,
        "name": name,
        "cards": cards,
        "torch": torch.__version__,
        "dry": bench.dry,
    }


def read(folder: Path) -> list[dict[str, Any]]:
    """Rows so far: {"part", "row", "machine", "figures"}."""
    file = folder / FILE
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    return rows


def known(rows: list[dict[str, Any]], part: str, name: str, where: dict[str, Any]) -> bool:
    """Whether this machine has this row."""
    wanted = {"part": part, "row": name, "machine": where}
    return any({key: row[key] for key in wanted} == wanted for row in rows)


def add(folder: Path, part: str, name: str, where: dict[str, Any], figures: Row) -> None:
    """Save a row beside those there are; other processes wait."""
    new = {"part": part, "row": name, "machine": where, "figures": figures}
    with alone(folder):
        write(folder, [*read(folder), new])


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other process that asks so changes the results meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as JSON, and as Markdown beside it; each file whole or as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILE
    for place, text in (
        (file, json.dumps(rows, indent=1) + "\n"),
        (file.with_suffix(".md"), render(rows)),
    ):
        new = place.with_name(f"{place.name}.new")
        new.write_text(text)
        new.replace(place)


def render(rows: list[dict[str, Any]]) -> str:
    """A table for each machine and part, in the order in which they came."""
    lines = ["# Answers of a GPU", ""]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        where = row["machine"]
        title = f"{row['part']}: {where['name']}, torch {where['torch']}"
        groups.setdefault(f"{title}{', dry run' if where['dry'] else ''}", []).append(row)
    for title, group in groups.items():
        columns = list(dict.fromkeys(key for row in group for key in row["figures"]))
        lines += [f"## {title}", "", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1)]
        lines[-1] += "|"
        for row in group:
            cells = [_cell(row["figures"].get(key, "")) for key in columns]
            lines.append(f"| {row['row']} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "/")
