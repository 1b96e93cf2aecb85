"""Few masks: supervised alone against each way to use the images without, in equal minutes.

    python -m benchmarks.few_labels                          # streets and CamVid, 10 % and 25 %
    python -m benchmarks.few_labels --data streets --minutes 0.5 --seeds 0 --systems gan

Every run trains a small network from random weights for the minutes of its dataset, counted as
processor time, and is scored on the whole validation split. The same masks are hidden from all
systems of a seed. Rows stand in benchmarks/results/few_labels.json, and are not run again;
few_labels.md beside it is the table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

import segcore
from benchmarks.objects import cpu_clock
from segcore.data.few_labels import hide_labels
from segcore.data.prepare import validate, write
from segcore.datasets import DataSource, create_dataset
from segcore.machine import describe_machine, keep_freed_memory
from segcore.tasks import get_kind

ROOT = Path(__file__).resolve().parent.parent
MIRROR = Path(os.environ.get("SEGCORE_MIRROR", ROOT.parent / "shared" / "data"))
RESULTS = ROOT / "benchmarks" / "results" / "few_labels.json"
BATCH = 4
UNET = {"base_channels": 16, "norm": "batch", "dropout": 0.0}
GAN = {"segmenter": "unet", "segmenter_options": UNET, "base_channels": 16}
DECOUPLED = {"backbone": "vgg11_bn", "head_kernel": 1, "fc_channels": 256, "bridge_channels": 256}
SYSTEMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "supervised": ("semantic", "unet", UNET),
    "mean_teacher": ("semi_supervised", "unet", UNET),
    "gan": ("semi_supervised", "gan", GAN),
    "gan_weak": ("semi_supervised", "gan", {**GAN, "weak": True}),
    "decouplednet": ("semi_supervised", "decouplednet", DECOUPLED),
}


class Data(NamedTuple):
    """A dataset of the table: options of its source, size of the pictures, crop, minutes."""

    options: dict[str, Any]
    size: tuple[int, int] | None
    crop: tuple[int, int]
    minutes: float


STREETS = {"num_train": 120, "num_val": 30, "num_test": 1, "height": 64, "width": 96}
DATA = {
    "streets": Data(STREETS, None, (64, 64), 1.5),
    "camvid": Data({}, (180, 240), (160, 160), 3.0),
}
KEYS = ("data", "fraction", "seed", "system", "minutes")


def open_data(name: str, folder: Path, *, fraction: float, seed: int) -> Any:
    """Shards of which only a share of the training pictures has masks."""
    data, shards = DATA[name], folder / f"{name}-{fraction:g}-{seed}"
    if not (shards / "manifest.json").is_file():
        where = {"raw": folder / "raw" / name, "mirror": MIRROR if MIRROR.is_dir() else None}
        source = create_dataset(name, DataSource(options=data.options, **where))
        source.download()
        whole = validate(source, size=data.size, workers=1)
        write(hide_labels(whole, fraction=fraction, seed=seed), shards, workers=1)
    return segcore.open_shards(shards)


def run(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train one system on a share of the masks."""
    dataset = open_data(row["data"], folder, fraction=row["fraction"], seed=row["seed"])
    task_name, architecture, options = SYSTEMS[row["system"]]
    kind, machine = get_kind(task_name).of(architecture, options), describe_machine()
    keep_freed_memory()
    torch.manual_seed(row["seed"])
    model = segcore.create_model(architecture, **kind.model_facts(dataset), **options)
    task = kind.create_task(dataset, loss="dice_ce")
    crop = list(DATA[row["data"]].crop)
    augment = {"hflip": 0.5, "crop": crop, "scale": [0.8, 1.5], "color": 0.2}
    loading = {"batch_size": BATCH, "seed": row["seed"], "augment": augment}
    train, val = kind.create_loaders(dataset, epoch_steps=10**6, **loading)
    fitting = {
        "epochs": 1, "lr": 0.002, "schedule": "cosine", "seed": row["seed"], "device": "cpu",
        "precision": "bf16" if machine.fast_bf16 else "fp32", "channels_last": True,
        "max_minutes": row["minutes"],
    }  # fmt: skip
    with cpu_clock(True):
        *_, last = segcore.fit(task, model, train, val, **fitting)
    masks = len(dataset.split("train"))
    figures = {"miou": round(last.metrics["val/miou"], 4), "steps": last.step, "masks": masks}
    return {**row, **figures, "precision": fitting["precision"], "threads": torch.get_num_threads()}


def in_own_process(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The row of one run, or its "error"."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.few_labels"]
    command += ["--folder", str(folder), "--one", json.dumps(row)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {**row, "error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """A line a dataset, share and system: the seeds' mIoU, and what is gained on supervised."""
    lines = [
        "# Few labels",
        "",
        "mIoU on the validation pictures after equal minutes of processor time (one thread), from",
        "random weights; one figure a seed, which also decides what is hidden. The gain is the",
        "mean difference to `supervised` of the same seed. `python -m benchmarks.few_labels`.",
        "",
        "| data | masks | system | minutes | mIoU of each seed | gain, points | steps |",
        "|---|---|---|---|---|---|---|",
    ]
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if "miou" in row:
            key = (row["data"], row["fraction"], row["system"], row["minutes"])
            found.setdefault(key, []).append(row)
    order = list(SYSTEMS)
    for key in sorted(found, key=lambda key: (*key[:2], order.index(key[2]), key[3])):
        data, fraction, system, minutes = key
        mine = {row["seed"]: row for row in found[key]}
        base = {row["seed"]: row for row in found.get((data, fraction, "supervised", minutes), [])}
        both = [100 * (mine[seed]["miou"] - base[seed]["miou"]) for seed in mine if seed in base]
        gain = f"{statistics.mean(both):+.1f}" if both and system != "supervised" else ""
        seeds = sorted(mine)
        figures = ", ".join(f"{mine[seed]['miou']:.3f}" for seed in seeds)
        steps = ", ".join(str(mine[seed]["steps"]) for seed in seeds)
        masks = f"{mine[seeds[0]]['masks']} ({fraction:.0%})"
        lines.append(
            f"| {data} | {masks} | {system} | {minutes:g} | {figures} | {gain} | {steps} |"
        )
    failed = [f"- {row['data']}, {row['system']}: {row['error']}" for row in rows if "error" in row]
    return "\n".join([*lines, *(["", *failed] if failed else [])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.1, 0.25])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--minutes", type=float, help="of each run; default: the dataset's")
    parser.add_argument("--folder", type=Path, default=Path("outputs/few_labels"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", type=json.loads, help="one row, as JSON on the last line")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(run(given.one, given.folder)))
        return
    rows: list[dict[str, Any]] = json.loads(given.out.read_text()) if given.out.is_file() else []
    for seed in given.seeds:
        for fraction in given.fractions:
            for data in given.data:
                for system in given.systems:
                    minutes = given.minutes or DATA[data].minutes
                    wanted = dict(zip(KEYS, (data, fraction, seed, system, minutes), strict=True))
                    if any(
                        all(row[key] == wanted[key] for key in KEYS) and "miou" in row
                        for row in rows
                    ):
                        continue
                    rows = [row for row in rows if any(row[key] != wanted[key] for key in KEYS)]
                    rows.append(in_own_process(wanted, given.folder))
                    print(rows[-1], flush=True)
                    given.out.parent.mkdir(parents=True, exist_ok=True)
                    given.out.write_text(json.dumps(rows, indent=1) + "\n")
                    given.out.with_suffix(".md").write_text(table(rows))


if __name__ == "__main__":
    main()
