"""What each rule of the plan is worth: the planned training, and the same with one rule off.

    python benchmarks/plan_rules.py [--minutes 4] [--seeds 0 1] [--data nuclei ...] [--rules ...]

Same folders as own_data.py, same minutes, in this process, without DVC and MLflow. A rule that
would not have decided otherwise on a dataset has no row there. What is in
benchmarks/results/plan_rules.json is not run again, so a sitting may end anywhere;
plan_rules.md beside it is the table of docs/plan.md.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from objects import cpu_clock
from own_data import ROOT, make

import segcore
from pipelines.params import Params
from pipelines.params.planned import apply_plan
from pipelines.plan import make_plan
from pipelines.scoring.records import record
from pipelines.sources import create_dataset
from pipelines.train import package_spec
from pipelines.training.build import build_loaders, build_model, build_task, find_kind
from segcore.data.prepare import validate, write

RESULTS = ROOT / "benchmarks" / "results"
DATA = ("nuclei", "camvid", "isbi_em", "streets")
# What a person gets without the rule: the other common choice.
OFF: dict[str, dict[str, Any]] = {
    "nothing (the plan)": {},
    "precision": {"train.precision": "fp32"},
    "loss": {"loss.name": "cross_entropy"},
    "class weights": {"loss.class_weights": "none"},
    "class crops": {"train.augment.class_crops": 0.0},
    "turning over": {"train.augment.vflip": 0.0, "train.augment.rot90": 0.0},
    "scale and colour, changed": {"train.augment.scale": [0.8, 1.25], "train.augment.color": 0.2},
    "scale and colour, as they are": {
        "train.augment.scale": [1.0, 1.0],
        "train.augment.color": 0.0,
    },
    "refit": {"train.refit": False},
    "batch size": {"train.batch_size": 16},
    "learning rate": {"train.lr": 0.0003},
    "crop": {"train.augment.crop": None},
    "architecture": {"model.name": "linknet"},
    "norm in the decoder": {"model.options.norm": None},
    "width of the decoder": {"model.options.base_channels": 64},
    "upsampling": {"model.options.upsample": "transposed"},
    "head": {"model.options.head_kernel": 1},
    "dropout": {"model.options.dropout": 0.5},
    "progressive": {"train.progressive": 0.0},
}


def prepare(name: str, work: Path) -> tuple[Path, Path]:
    """The folder of a dataset, and its shards; made where they are missing."""
    folder, shards = work / name, work / "shards" / name
    if not (folder / "classes.txt").is_file():
        make(name, work)
    if not (shards / "manifest.json").is_file():
        found = validate(create_dataset(settings(folder, {})), size=None)
        found.check(0)
        write(found, shards, image_encoding="keep", rows_per_shard=256)
    return folder, shards


def settings(folder: Path, values: dict[str, Any]) -> Params:
    given = {"data.name": "folder", "data.path": str(folder), **values}
    return Params.load(ROOT / "params.yaml").override(given)


def planned(folder: Path, shards: Path, values: dict[str, Any]) -> Params:
    params = settings(folder, values)
    decisions, _ = make_plan(params, segcore.open_shards(shards).meta)
    found = {key: {"value": entry.value} for key, entry in decisions.items()}
    return apply_plan(params, found)


def run(params: Params, shards: Path) -> dict[str, Any]:
    """Train as the stage train does, and score the test split as evaluate does."""
    dataset = segcore.open_shards(shards)
    torch.manual_seed(params.train.seed)
    model = build_model(params, dataset)
    train, val = build_loaders(params, dataset)
    judge = None if params.train.refit else val
    options = params.train.fit_options()
    steps, best, weights = 0, float("-inf"), model.state_dict()
    for epoch in segcore.fit(build_task(params, dataset), model, train, judge, **options):
        score = epoch.metrics.get("val/miou", float("inf"))  # without validation, the last
        if score >= best:
            best, weights = score, epoch.weights()
        steps = epoch.step
    model.load_state_dict(weights)
    kind, precision = find_kind(params, dataset), params.train.precision
    spec = package_spec(params, dataset, {})
    predictor = kind.create_predictor(model, spec, precision=precision)
    rows = list(range(len(dataset.split("test"))))
    records = kind.records(record(predictor, dataset, rows, kind=kind, batch_size=1), dataset)
    score = float(kind.figures(records, np.ones((1, len(rows))))[kind.headline][0])
    column = kind.class_table(records, None, dataset).columns[0]
    by_class = dict(zip(dataset.classes, map(float, column.values), strict=True))
    return {"steps": steps, "miou": score, "iou": by_class}


def table(rows: list[dict[str, Any]]) -> str:
    """Test mIoU of the plan, and what it is without each rule, in points; seed by seed."""
    names = [name for name in DATA if any(row["data"] == name for row in rows)]
    minutes = {row["data"]: row["minutes"] for row in rows}
    heads = [f"{name}, {minutes[name]:g} min" for name in names]
    lines = [f"| rule switched off | {' | '.join(heads)} |", "|---" * (len(names) + 1) + "|"]
    base = {name: scores(rows, name, next(iter(OFF))) for name in names}
    for rule in OFF:
        cells = []
        for name in names:
            found = scores(rows, name, rule)
            if OFF[rule]:
                both = [seed for seed in found if seed in base[name]]
                cells.append(", ".join(f"{100 * (found[s] - base[name][s]):+.1f}" for s in both))
            else:
                cells.append(", ".join(f"{score:.3f}" for score in found.values()))
        if any(cells):
            lines.append(f"| {rule} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def scores(rows: list[dict[str, Any]], data: str, rule: str) -> dict[int, float]:
    """Test mIoU by seed."""
    found = {row["seed"]: row["miou"] for row in rows if (row["data"], row["rule"]) == (data, rule)}
    return dict(sorted(found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=DATA)
    parser.add_argument("--rules", nargs="+", default=list(OFF), choices=list(OFF))
    parser.add_argument("--cpu-clock", action="store_true", help="count processor time a thread")
    parser.add_argument("--work", type=Path, help="folder for the data; kept")
    arguments = parser.parse_args()
    file = RESULTS / "plan_rules.json"
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        places = {name: prepare(name, work) for name in arguments.data}
        for seed in arguments.seeds:
            for rule in arguments.rules:
                for name, (folder, shards) in places.items():
                    given = {"train.budget_minutes": arguments.minutes, "train.seed": seed}
                    plan = planned(folder, shards, given)
                    params = planned(folder, shards, {**given, **OFF[rule]})
                    if OFF[rule] and params == plan:
                        continue  # the rule decides nothing else here
                    about = {"data": name, "rule": rule, "seed": seed, "cores": cores()}
                    about |= {"minutes": arguments.minutes}
                    about["clock"] = "cpu" if arguments.cpu_clock else "wall"
                    rows = json.loads(file.read_text()) if file.is_file() else []
                    if any({key: row.get(key) for key in about} == about for row in rows):
                        continue
                    try:
                        with cpu_clock(arguments.cpu_clock):
                            found = run(params, shards)
                    except segcore.SegcoreError as error:
                        print(f"{name}, {rule}: {error}", flush=True)
                        continue
                    rows.append({**about, **found})
                    file.write_text(json.dumps(rows, indent=1) + "\n")
                    file.with_suffix(".md").write_text(table(rows))
                    print(f"{name}, without {rule}, seed {seed}: {found['miou']:.4f}", flush=True)


def cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
