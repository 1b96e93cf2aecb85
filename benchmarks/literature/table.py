"""The rows of a dataset as a table."""

import json
from pathlib import Path
from typing import Any

from benchmarks.literature.recipes import FIGURES, published, recipe_of
from segcore.models import model_card

HEADS = (
    "system", "published", "mIoU", "95 % interval", "pixel accuracy", "class accuracy", "seed",
    "minutes", "steps", "images/s", "hardware", "recipe", "caveat",
)  # fmt: skip
NOTE = """\
Published figures beside ours, in percent. Each of ours is one training of the minutes that its row
says, from random weights unless the row says otherwise, by the recipe of
`benchmarks/literature/recipes.py`: the published optimiser, rate, schedule (stretched over the
minutes), crop, loss and weights. Scored on the test split at the size of the row, void left out,
over the sum of all images. The interval is a bootstrap over the test images: it says nothing of
another seed, and frames of one film are alike, so that it is too narrow. Minutes of the clock
`cpu` are processor time a thread. Systems that need images without masks (`gan`, `decouplednet`)
are in `benchmarks/few_labels.py`.
"""


def read(file: Path) -> list[dict[str, Any]]:
    """Rows so far."""
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    return rows


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as JSON, and as Markdown beside it; each file whole or as it was."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for place, text in (
        (file, json.dumps(rows, indent=1) + "\n"),
        (file.with_suffix(".md"), render(rows)),
    ):
        new = place.with_name(f"{place.name}.new")
        new.write_text(text)
        new.replace(place)


def render(rows: list[dict[str, Any]]) -> str:
    """A table a size of pictures; a row that failed has its reason in place of figures."""
    datasets = sorted({row["dataset"] for row in rows})
    lines = [f"# The literature on {', '.join(datasets)}", "", NOTE.rstrip()]
    for height, width in sorted({(row["height"], row["width"]) for row in rows}):
        lines += ["", f"## {height} x {width}", ""]
        lines += [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
        of_size = [row for row in rows if (row["height"], row["width"]) == (height, width)]
        for row in sorted(of_size, key=lambda row: (row["system"], row["minutes"], row["seed"])):
            lines.append(f"| {' | '.join(_cells(row))} |")
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    recipe = recipe_of(row["system"])
    card = model_card(row["system"])
    known = published(card, recipe, row["dataset"])
    cells = [f"{card.title} ({card.year})", _listed(known)]
    if "error" in row:
        reason = row["error"].replace("|", "/")
        figures = [f"not measured: {reason}", "", "", ""]
    else:
        figures = [
            f"**{row['miou']:.1f}**",
            f"{row['low']:.1f} to {row['high']:.1f}",
            f"{row['pixel_accuracy']:.1f}",
            f"{row['class_accuracy']:.1f}",
        ]
    minutes = f"{row['minutes']:g} ({row['clock']})"
    done = [str(row["seed"]), minutes, str(row.get("steps", "")), str(row.get("images_per_s", ""))]
    return [*cells, *figures, *done, _hardware(row), recipe.source, caveats(row)]


def _listed(figures: dict[str, float]) -> str:
    return ", ".join(f"{FIGURES[name]} {value:g}" for name, value in figures.items())


def _hardware(row: dict[str, Any]) -> str:
    how = row["precision"]
    how += ", channels last" if row["channels_last"] else ""
    how += ", compiled" if row["compile"] else ""
    how += f", one of {row['at_once']} at once" if row.get("at_once", 1) > 1 else ""
    threads = f", {row['threads']} threads" if row["device"] == "cpu" and "threads" in row else ""
    return f"{row.get('hardware', row['device'])}{threads}, {how}"


def caveats(row: dict[str, Any]) -> str:
    """In what the row is not the published training."""
    recipe = recipe_of(row["system"])
    found = [f"{row['height']} x {row['width']}"]
    if row["recipe"] != recipe.digest():
        return f"{found[0]}; by an earlier recipe, {row['recipe']}"
    if recipe.imagenet:
        begun = "from" if row["pretrained"] else "published from"
        found.append(f"{begun} {recipe.imagenet}")
    if not row["pretrained"] and recipe.scratch_lr is not None:
        found.append(f"rate {recipe.scratch_lr:g} for {recipe.lr:g}")
    if "batch" in row and row["batch"] != recipe.batch:
        found.append(f"batch {row['batch']} for {recipe.batch}")
    return "; ".join([*found, *([recipe.caveat] if recipe.caveat else [])])
