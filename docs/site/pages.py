"""Pages of the site that follow from code and results: architectures, losses, library ..."""

import importlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from segcore.losses import LOSSES
from segcore.models import ModelCard, create_model, list_models, model_card, model_options
from segcore.summary import Summary, summarize

Ours = Mapping[str, Sequence[tuple[str, str]]]  # (of what, figures) by architecture

CLASSES = 21
SIZES = {2: (360, 480), 3: (64, 64, 64)}
TASKS = ("semantic", "instance", "panoptic", "semi_supervised")
LIBRARY = (
    "segcore.models", "segcore.losses", "segcore.metrics", "segcore.tasks", "segcore.engine",
    "segcore.data.sample", "segcore.data.shards", "segcore.data.loader", "segcore.datasets",
    "segcore.inference.predictor", "segcore.package", "segcore.export", "segcore.summary",
    "segcore.errors",
)  # fmt: skip


def write_all(root: Path) -> dict[str, str]:
    """Path below docs/ -> Markdown, of every generated page."""
    return {
        "architectures.md": architectures(measured(root)),
        "literature.md": literature(root / "benchmarks/results"),
        "losses.md": losses(),
        "library.md": library(),
        "decisions.md": decisions(root / "docs/decisions"),
    }


def measured(root: Path) -> Ours:
    """Rows of our figures for each architecture, out of benchmarks/results."""
    results, found = root / "benchmarks/results", defaultdict(list)
    for row in read_json(results / "zoo.json")["rows"]:
        figures = (
            f"{row['gflops']:g} GFLOPs, forward {row['cpu_forward_s']:g} s, training step of 2 "
            f"images {row['cpu_step_s']:g} s"
        )
        found[row["model"]].append((f"2 CPU cores, {sides(row['size'])}", figures))
    for row in read_json(results / "gpu.json"):
        card, figures = row["machine"]["name"], row["figures"]
        if row["part"] == "steps" and "step ms" in figures:
            text = f"training step of {figures['batch']} images {figures['step ms']:g} ms in bf16, "
            text += f"{figures['fp32 ms']:g} ms in fp32"
            found[row["row"]].append((f"{card}, 360 x 480", text))
    for file in sorted(results.glob("literature-*.json")):
        for row in read_json(file):
            if "miou" in row:
                where = f"{row['dataset']} {row['height']} x {row['width']}"
                begun = "ImageNet" if row["pretrained"] else "random"
                spent = f"{row['minutes']:g} minutes of {row['hardware']}, from {begun} weights"
                text = (
                    f"mIoU {row['miou']:.1f} ({row['low']:.1f} to {row['high']:.1f}) after {spent}"
                )
                found[row["system"]].append((where, text))
    return found


def literature(results: Path) -> str:
    """The tables of `python -m benchmarks.literature`, one a dataset."""
    return "\n".join(file.read_text() for file in sorted(results.glob("literature-*.md")))


def read_json(file: Path) -> Any:
    return json.loads(file.read_text())


def sides(size: Iterable[int]) -> str:
    return " x ".join(str(side) for side in size)


def architectures(ours: Ours) -> str:
    """Every registered architecture: card, blocks, published figures, ours."""
    parts = [
        "# Architectures",
        f"Written from the registry. Parameters at {CLASSES} classes; blocks at the sizes named, "
        "of one image. A published figure is the authors' own unless its name says otherwise; "
        "ours are only those that were run, by benchmarks/zoo.py, `python -m benchmarks.gpu` and "
        "`python -m benchmarks.literature`.",
    ]
    for task in TASKS:
        names = list_models(task)
        if names:
            parts.append(f"## {task.replace('_', '-').capitalize()}")
            parts.extend(architecture(name, ours.get(name, ())) for name in names)
    return "\n\n".join(parts) + "\n"


def architecture(name: str, ours: Sequence[tuple[str, str]]) -> str:
    """The section of one architecture."""
    card = model_card(name)
    parts = [
        f"### {name}",
        f"{card.title} ({card.year}). {card.paper}",
        table(("", ""), facts(name, card, ours)),
    ]
    if card.published:
        rows = [(key, f"{value:g}") for key, value in card.published.items()]
        parts.append(table(("published", "figure"), rows))
    if card.notes:
        parts.append(card.notes)
    parts.append(blocks(name, card))
    return "\n\n".join(parts)


def facts(name: str, card: ModelCard, ours: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Rows about an architecture: size, options, what was measured."""
    options = ", ".join(f"`{key}={value}`" for key, value in model_options(name).items())
    rows = [("parameters", f"{card.parameters:,}"), ("options", options or "none")]
    return rows + [(f"ours: {where}", figures) for where, figures in ours]


def blocks(name: str, card: ModelCard) -> str:
    """The outermost blocks as a table, or why there is none."""
    size = SIZES[card.input_dims]
    try:
        with torch.device("meta"):
            model = create_model(name, num_classes=CLASSES)
        summary = summarize(model, size)
    except RuntimeError:  # a tensor without values met what depends on values
        if card.task == "semantic":
            raise
        return (
            "Its blocks cannot be listed without an image: what runs depends on what is found on "
            "it."
        )
    return block_table(summary)


def block_table(summary: Summary) -> str:
    """Blocks of the first level with what they return, and the totals."""
    rows = [
        (
            f"`{layer.name}`",
            layer.kind,
            ", ".join("x".join(map(str, shape)) for shape in layer.output) or "-",
            f"{layer.parameters:,}",
            f"{layer.flops / 1e6:,.0f}" if layer.flops else "-",
        )
        for layer in summary.layers
        if layer.depth == 1
    ]
    field = " x ".join("all" if side is None else str(side) for side in summary.receptive_field)
    size = " x ".join(str(side) for side in summary.size)
    head = ("block", "kind", "returns", "parameters", "MFLOPs")
    line = (
        f"At {size}: {summary.flops / 1e9:,.2f} GFLOPs, receptive field {field}, output stride "
        f"{summary.output_stride}."
    )
    return f"{table(head, rows)}\n\n{line}"


def losses() -> str:
    """Every registered loss, by its docstring."""
    parts = [
        "# Losses",
        "`loss.name` of params.yaml, or `segcore.create_loss(name, num_classes=...)`. Weighted "
        "sums: `loss.terms`; class weights from the data: `loss.class_weights`.",
    ]
    for name, function in sorted(LOSSES.items()):
        target = f"{function.__module__}.{function.__name__}"
        options = "    options: {show_root_heading: false, heading_level: 3}"
        parts.append(f"## {name}\n\n::: {target}\n{options}")
    return "\n\n".join(parts) + "\n"


def library() -> str:
    """The reference, from docstrings."""
    parts = [
        "# Library reference",
        "From the docstrings. Most names are also `segcore.<name>`: `segcore.create_model`, "
        "`segcore.fit`, `segcore.load_package`.",
    ]
    for module in LIBRARY:
        names = public(module)
        members = json.dumps(names)
        parts.append(
            f"## {module}\n\n::: {module}\n    options:\n      members: {members}\n"
            "      heading_level: 3"
        )
    return "\n\n".join(parts) + "\n"


def public(module: str) -> list[str]:
    """Names that a module offers, those of `__all__` where it has one."""
    loaded = importlib.import_module(module)
    names: Iterable[str] = getattr(loaded, "__all__", None) or [
        name
        for name, value in vars(loaded).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("segcore")
    ]
    return sorted(names)


def decisions(folder: Path) -> str:
    """Links to every decision, by its first line."""
    lines = ["# Decisions", "Why it is built so, ten lines each.", ""]
    for file in sorted(folder.glob("*.md")):
        title = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"- [{title}](decisions/{file.name})")
    return "\n".join(lines) + "\n"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table of Markdown."""
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
