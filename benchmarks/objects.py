"""Models of objects on one dataset, each for the same minutes: figures of the test split.

    python benchmarks/objects.py mask_rcnn [--minutes 10] [--set model.options.roi_pool=warp]
    python benchmarks/objects.py mnc --cpu-clock         # minutes of the process, not of the wall

As the stages do: plan, loaders, fit by the clock, records, figures; without DVC and MLflow. What
`LIGHT` names beside the plan is that every network be of a size that minutes can train; what is
set by hand goes before it. The shards are made of the archive in SEGCORE_MIRROR where they are
missing. A row that stands in benchmarks/results/objects.json is not run again; objects.md beside
it is the table.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml

import segcore
from pipelines.params import Params
from pipelines.params.planned import apply_plan
from pipelines.plan import make_plan
from pipelines.scoring.records import record
from pipelines.sources import create_dataset
from pipelines.train import package_spec
from pipelines.training.build import build_loaders, build_model, build_task, find_kind
from segcore.data.prepare import validate, write
from segcore.engine import run as engine_run

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FIGURES = ("ap", "ap50", "ap75", "dsb", "ar100")
PLANNED = "mask_rcnn"  # what the plan itself starts from: named by `auto`, with options of its own

# Beside the plan, for pictures of a hundred objects, most of them 10 to 40 px: a ResNet-18 in place
# of the paper's backbone, narrower heads, windows and anchors that fit the objects. Where a network
# of stride 16 has no finer level, pictures are enlarged, and crops are the smaller for it.
SMALL = {"train.augment.crop": [128, 128]}
LIGHT: dict[str, dict[str, Any]] = {
    "mask_rcnn": {},
    "watershed": {},
    # A window's object is 4 / 7 of it: 9 to 37 px over the scales, and half or twice that.
    "deepmask": {
        "model.options.heads": "shared",
        "model.options.input_size": 64,
        "model.options.mask_size": 28,
        "model.options.mask_threshold": 0.5,
        "model.options.scales": [1.0, 1.41, 2.0, 2.83, 4.0],
    },
    # As much: a window of 11 cells of 8 px has an object of 50 px.
    "instance_fcn": {
        **SMALL,
        "model.options.window": 11,
        "model.options.scales": [1.0, 1.5, 2.25, 3.4, 5.0],
    },
    "fcis": {
        **SMALL,
        "model.options.enlarge": 4.0,
        "model.options.anchor_sizes": [[32, 64, 128]],
        "model.options.grid": 5,
        "model.options.roi_size": 15,
        "model.options.hidden": 256,
        "model.options.proposals": 600,
        "model.options.box_detections_per_img": 400,
    },
    "mnc": {
        **SMALL,
        "model.options.enlarge": 4.0,
        "model.options.anchor_sizes": [[32, 64, 128]],
        "model.options.hidden": 512,
        "model.options.proposals": 600,
        "model.options.box_detections_per_img": 400,
    },
}


def settings(name: str, data: str, minutes: float, values: dict[str, Any]) -> Params:
    """Params as a person would write them."""
    given = {"data.name": data, "data.task": "instance", "train.budget_minutes": minutes}
    if name != PLANNED:
        given |= {"model.name": name, "model.options.backbone": "resnet18"}
    return Params.load(ROOT / "params.yaml").override({**given, **LIGHT[name], **values})


def open_data(params: Params, folder: Path) -> Any:
    """The shards; made where they are missing."""
    if not (folder / "manifest.json").is_file():
        dataset = create_dataset(params)
        dataset.download()
        found = validate(dataset, size=None)
        found.check(0)
        write(found, folder, image_encoding="keep", rows_per_shard=256)
    return segcore.open_shards(folder)


@contextmanager
def cpu_clock(on: bool) -> Iterator[None]:
    """Let training end by the processor time of each thread."""

    def minutes_of_a_thread() -> float:
        return time.process_time() / torch.get_num_threads()

    clock = engine_run.time
    if on:
        counted = SimpleNamespace(monotonic=minutes_of_a_thread, perf_counter=time.perf_counter)
        engine_run.time = counted  # type: ignore[assignment]
    try:
        yield
    finally:
        engine_run.time = clock


def train(params: Params, dataset: Any) -> tuple[Any, int]:
    """The weights that the stage train would keep, in their model; and the steps done."""
    torch.manual_seed(params.train.seed)
    model, task = build_model(params, dataset), build_task(params, dataset)
    loader, val = build_loaders(params, dataset)
    judge = None if params.train.refit else val
    steps, best, weights = 0, float("-inf"), model.state_dict()
    for epoch in segcore.fit(task, model, loader, judge, **params.train.fit_options()):
        score = epoch.metrics.get("val/ap", float("inf"))  # without validation, the last
        if score >= best:
            best, weights = score, epoch.weights()
        steps = epoch.step
        shown = {key: f"{value:.4g}" for key, value in epoch.metrics.items()}
        print(f"step {steps}:", *(f"{k}={v}" for k, v in shown.items()), flush=True)
    model.load_state_dict(weights)
    return model, steps


def score(model: Any, params: Params, dataset: Any) -> dict[str, float]:
    """Figures of the test split."""
    kind = find_kind(params, dataset)
    spec = package_spec(params, dataset, {})
    predictor = kind.create_predictor(model, spec, precision=params.train.precision)
    rows = list(range(len(dataset.split("test"))))
    table = record(predictor, dataset, rows, kind=kind, batch_size=1)
    found = kind.figures(kind.records(table, dataset), np.ones((1, len(rows))))
    return {name: float(found[name][0]) for name in FIGURES}


def table(rows: list[dict[str, Any]]) -> str:
    """A row a run, as Markdown."""
    heads = ("data", "model", "set", "minutes", "clock", "seed", "steps", "AP", "AP50", "AP75")
    lines = [f"| {' | '.join(heads)} | DSB | AR@100 |", "|---" * (len(heads) + 2) + "|"]
    for row in rows:
        given = " ".join(f"{key}={value}" for key, value in row["set"].items())
        cells = [row["data"], row["model"], given, f"{row['minutes']:g}", row["clock"]]
        cells += [str(row["seed"]), str(row["steps"])]
        lines.append("| " + " | ".join([*cells, *(f"{row[k]:.3f}" for k in FIGURES)]) + " |")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=LIGHT)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default="nuclei", help="a dataset with instances")
    parser.add_argument("--shards", type=Path, help="of it; default: data/shards/NAME")
    parser.add_argument("--cpu-clock", action="store_true", help="count processor time a thread")
    parser.add_argument("--results", type=Path, default=RESULTS / "objects.json")
    return parser.parse_args()


def describe(arguments: argparse.Namespace) -> dict[str, Any]:
    """What tells a row from others."""
    pairs = (given.partition("=") for given in arguments.set)
    return {
        "data": arguments.data,
        "model": arguments.model,
        "set": {key: yaml.safe_load(value) for key, _, value in pairs},
        "minutes": arguments.minutes,
        "seed": arguments.seed,
        "clock": "cpu" if arguments.cpu_clock else "wall",
        "threads": torch.get_num_threads(),
    }


def read_rows(file: Path) -> list[dict[str, Any]]:
    return list(json.loads(file.read_text())) if file.is_file() else []


def main() -> None:
    arguments = parse()
    about, file = describe(arguments), arguments.results
    if any({key: row.get(key) for key in about} == about for row in read_rows(file)):
        print(f"done before, see {file}: {about}")
        return
    values = {"train.seed": arguments.seed, **about["set"]}
    params = settings(arguments.model, arguments.data, arguments.minutes, values)
    dataset = open_data(params, arguments.shards or ROOT / "data" / "shards" / arguments.data)
    decisions, _ = make_plan(params, dataset.meta)
    params = apply_plan(params, {key: {"value": entry.value} for key, entry in decisions.items()})
    print(json.dumps(params.pick(("model", "train")), default=str), flush=True)
    with cpu_clock(arguments.cpu_clock):
        model, steps = train(params, dataset)
    start = time.process_time()
    found = score(model, params, dataset)
    recipe = {"options": params.model.options, "crop": params.train.augment.crop}
    recipe |= {"lr": params.train.lr, "batch": params.train.batch_size}
    recipe |= {"precision": params.train.precision, "scoring_cpu_s": time.process_time() - start}
    row = {**about, "steps": steps, **found, **recipe, "when": time.strftime("%Y-%m-%d")}
    rows = [*read_rows(file), row]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows, indent=1) + "\n")
    file.with_suffix(".md").write_text(table(rows))
    print(table(rows).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
