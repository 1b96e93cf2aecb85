"""What Ray costs training: a step beside plain torch, the way to the first report, the readers.

    python benchmarks/scaling.py [--steps 40] [--epochs 5] [--parts steps readers]

`steps`: the planned training of the default data with one and with two workers, a thread each, by
the stage `train` (Ray Train); and the same model, loss, optimiser and batches in a bare loop, in
one process or in two with DDP over gloo. Of both the median over all epochs but the first; of
the stage also with the checkpoint and the report that end an epoch. `readers`: images a second that
1, 2 and 4 processes read and decode, each its share. Wall time: on a machine that does nothing
else. Results: benchmarks/results/scaling.json and .md.
"""

import argparse
import ctypes
import itertools
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from startup import PLANNED, PR_SET_CHILD_SUBREAPER, RESULTS, ROOT, measure, workspace
from torch import distributed, nn

import segcore
from pipelines.params import Params
from pipelines.training.build import build_loaders, build_model, build_task
from segcore.data.prepare import prepare
from segcore.datasets import DataSource, create_dataset


def params_of(steps: int, epochs: int, workers: int) -> dict[str, Any]:
    """Values of params.yaml beside what the plan gives the default data."""
    own = {"train.epoch_steps": steps, "train.epochs": epochs, "train.precision": "bf16"}
    return {**PLANNED, **own, "cluster.num_workers": workers, "tracking.system_metrics": False}


def plain(rank: int, workers: int, port: int, shards: str, values: dict[str, Any]) -> float:
    """Seconds of a step of a bare loop; every rank runs this."""
    torch.set_num_threads(1)
    params = Params.load(ROOT / "params.yaml").override(values)
    dataset = segcore.open_shards(shards)
    torch.manual_seed(0)
    task = build_task(params, dataset)
    network = build_model(params, dataset).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader, _ = build_loaders(params, dataset, rank=rank, world_size=workers)
    model: nn.Module = network
    if workers > 1:
        distributed.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers
        )
        model = nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.AdamW(model.parameters(), lr=params.train.lr)
    seconds, steps, epoch = [], params.train.epoch_steps, 0
    batches = iter(loader.epoch(0))
    for _ in range(params.train.epochs):
        began = time.monotonic()
        for _ in range(steps):
            batch = next(batches, None)
            if batch is None:
                epoch += 1
                batches = iter(loader.epoch(epoch))
                batch = next(batches)
            with torch.autocast("cpu", torch.bfloat16):
                loss = sum(task.training_step(model, batch).values())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        seconds.append((time.monotonic() - began) / steps)
    if workers > 1:
        distributed.destroy_process_group()
    return statistics.median(seconds[1:])


def spread(what: str, workers: int, *arguments: Any) -> list[Any]:
    """What each of several processes returns, of `CHILDREN[what](rank, workers, *arguments)`."""
    tasks = [json.dumps([what, rank, workers, *arguments]) for rank in range(workers)]
    command = [sys.executable, __file__, "--child"]
    running = [subprocess.Popen([*command, task], stdout=subprocess.PIPE) for task in tasks]
    return [json.loads(process.communicate()[0]) for process in running]


def by_stage(shards: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a step of the stage `train`, and the moments on the way to the first report."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        workspace(folder, shards, values)
        clock = measure("train", folder)
    times = [mark["s"] for mark in clock.marks if mark["what"].startswith("epoch ")]
    steps = values["train.epoch_steps"]
    gaps = [(after - before) / steps for before, after in itertools.pairwise(times)]
    return {"step_s": statistics.median(gaps), "marks": clock.marks}


def read(rank: int, workers: int, shards: str, images: int) -> tuple[float, float, int]:
    """When a reader began and ended, and how many images it decoded."""
    torch.set_num_threads(1)
    params = Params.load(ROOT / "params.yaml").override({**PLANNED, "train.epoch_steps": None})
    dataset = segcore.open_shards(shards)
    loader, _ = build_loaders(params, dataset, rank=rank, world_size=workers, cache="none")
    next(iter(loader.epoch(0)))  # imports, first row group
    began, count, epoch = time.time(), 0, 1
    while count < images // workers:
        count += sum(len(batch["image"]) for batch in loader.epoch(epoch))
        epoch += 1
    return began, time.time(), count


def make(rank: int, workers: int, folder: str) -> str:
    """The default data as shards in a folder."""
    dataset = create_dataset("streets", DataSource(raw=Path(folder) / "raw"))
    dataset.download()
    prepare(dataset, Path(folder) / "shards", workers=1)
    return f"{folder}/shards"


CHILDREN = {"make": make, "plain": plain, "read": read}


def alone(marks: list[dict[str, Any]]) -> float:
    """Seconds of a step by the stage's own images/s, which leaves out checkpoints and reports."""
    told = [re.search(r"([0-9.]+) images/s", mark["what"]) for mark in marks]
    rates = [float(found.group(1)) for found in told if found]
    return PLANNED["train.batch_size"] / statistics.median(rates[1:])


def table(rows: dict[str, Any]) -> str:
    lines = [
        "| workers | plain torch, s a step | Ray Train, s a step | with checkpoints and reports | "
        "seconds to the first step | to the first report | CPU seconds until then |",
        "|---" * 7 + "|",
    ]
    for row in rows.get("steps", []):
        marks = {mark["what"]: mark for mark in row["marks"]}
        first, report = marks["first step"], marks["epoch 1"]
        steps, bare = alone(row["marks"]), row["plain_s"]
        cells = [f"{s:.3f} ({100 * (s / bare - 1):+.1f} %)" for s in (steps, row["ray_s"])]
        cells += [f"{seconds:.1f}" for seconds in (first["s"], report["s"], report["cpu_s"])]
        lines.append(f"| {row['workers']} | {bare:.3f} | {' | '.join(cells)} |")
    lines += ["", "| readers | images/s |", "|---|---|"]
    lines += [f"| {row['readers']} | {row['images_s']:.0f} |" for row in rows.get("readers", [])]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=2000, help="that all readers read together")
    parser.add_argument("--parts", nargs="+", default=["steps", "readers"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, *values = json.loads(arguments.child)
        print(json.dumps(CHILDREN[what](*values)))
        return
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    os.environ["OMP_NUM_THREADS"] = "1"
    file = RESULTS / "scaling.json"
    rows = json.loads(file.read_text()) if file.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        (shards,) = spread("make", 1, folder)  # whose helpers end with it: `measure` waits for all
        if "steps" in arguments.parts:
            rows["steps"] = []
            for workers in arguments.workers:
                values = params_of(arguments.steps, arguments.epochs, workers)
                bare = spread("plain", workers, free_port(), shards, values)
                found = by_stage(Path(shards), values)
                row = {"workers": workers, "plain_s": max(bare), "ray_s": found["step_s"]}
                rows["steps"].append({**row, "marks": found["marks"]})
        if "readers" in arguments.parts:
            rows["readers"] = []
            for readers in (1, 2, 4):
                parts = spread("read", readers, shards, arguments.images)
                seconds = max(end for _, end, _ in parts) - min(began for began, _, _ in parts)
                rate = sum(count for *_, count in parts) / seconds
                rows["readers"].append({"readers": readers, "images_s": rate})
    file.write_text(json.dumps(rows, indent=1) + "\n")
    file.with_suffix(".md").write_text(table(rows))
    print(table(rows))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


if __name__ == "__main__":
    main()
