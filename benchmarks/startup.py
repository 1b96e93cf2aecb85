"""Seconds that a stage needs beside its steps: before the first, after the last, and in parts.

A stage runs as users run it, on the shards that are prepared here, in a scratch workspace, for a
few short epochs. Beside the clock stand the processor seconds of all its processes, Ray's included:
on a machine that does other work too, only these can be compared.

    python benchmarks/startup.py search            three trials of two epochs by Ray Tune
    python benchmarks/startup.py train             training in one process
    python benchmarks/startup.py workers --workers 2   training by Ray Train
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
import yaml

from pipelines.params import Params

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.05
STAGES = {"search": "tune", "train": "train", "workers": "train"}
# What the plan gives the default data, the length apart: that depends on the machine.
PLANNED: dict[str, Any] = {
    "model.name": "unet",
    "model.options": {"backbone": "resnet18", "norm": "batch", "upsample": "nearest"},
    "loss.name": "dice_ce",
    "loss.class_weights": "inverse_log",
    "train.budget_minutes": 8.0,
    "train.epochs": 2,
    "train.max_minutes": None,
    "train.refit": True,
    "train.batch_size": 8,
    "train.lr": 0.001,
    "train.augment.crop": None,
    "train.progressive": 0.0,
    "train.augment.class_crops": 0.33,
    "train.augment.vflip": 0.0,
    "train.augment.rot90": 0.0,
    "train.augment.scale": [1.0, 1.0],
    "train.augment.color": 0.0,
    "tune.trials": 3,
    "tune.epochs": 2,
}


@dataclass
class Clock:
    """Moments of a stage: seconds since its start, and processor seconds until then."""

    start: float = field(default_factory=time.time)
    before: float = field(default_factory=lambda: processor_s())
    marks: list[dict[str, Any]] = field(default_factory=list)

    def mark(self, what: str, at: float | None = None) -> None:
        """Note that `what` happened, now or at a time of this machine's clock."""
        moment = (at or time.time()) - self.start
        self.marks.append({"what": what, "s": moment, "cpu_s": processor_s() - self.before})
        print(f"{moment:7.2f} s {self.marks[-1]['cpu_s']:7.2f} CPU s  {what}", flush=True)


def processor_s() -> float:
    """Processor seconds of all processes below this one, ended ones included."""
    total = 0.0
    ended = os.times()
    total += ended.children_user + ended.children_system
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total


def workspace(folder: Path, shards: Path, values: dict[str, Any]) -> None:
    """A project of params and shards only."""
    (folder / "data/shards").mkdir(parents=True)
    (folder / "data/shards/streets").symlink_to(shards)
    params = Params.load(ROOT / "params.yaml").override({**PLANNED, **values})
    (folder / "params.yaml").write_text(yaml.safe_dump(params.dump()))


def watch(folder: Path, clock: Clock, ended: Callable[[], bool]) -> None:
    """Mark what the folders of runs tell: the first step, and each report."""
    seen: set[str] = set()
    while not ended():
        for file in [*folder.glob("outputs/runs/*/progress.json")]:
            if "first step" not in seen:
                seen.add("first step")
                with suppress(OSError):
                    clock.mark("first step", file.stat().st_mtime)
        for file in folder.glob("outputs/runs/*/events.jsonl"):
            for line in _lines(file):
                event = json.loads(line)
                name = f"epoch {event['epoch']}"
                if event["complete"] and name not in seen:
                    seen.add(name)
                    clock.mark(name, event["time_s"])
        for file in sorted(folder.glob("outputs/runs/*/trials/*/progress.json")):
            if file.parent.name not in seen:
                seen.add(file.parent.name)
                with suppress(OSError):
                    clock.mark(f"first step of trial {file.parent.name}", file.stat().st_mtime)
        time.sleep(POLL_S)


def _lines(file: Path) -> list[str]:
    with suppress(OSError):
        return [line for line in file.read_text().splitlines() if line.endswith("}")]
    return []


def follow(stream: IO[str] | None, clock: Clock) -> None:
    """Mark each line that the stage prints."""
    for line in stream or ():
        clock.mark(f"says: {line.rstrip()}")


def measure(stage: str, folder: Path) -> Clock:
    """Run a stage in a workspace to its end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SEGCORE_ROOT": str(folder)}
    clock = Clock()
    process = subprocess.Popen(
        [sys.executable, "-m", f"pipelines.{stage}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    reader = threading.Thread(target=follow, args=(process.stdout, clock), daemon=True)
    reader.start()
    watch(folder, clock, lambda: process.poll() is not None)
    clock.mark(f"end, exit code {process.returncode}")
    _reap()
    reader.join(5.0)
    clock.mark("all processes ended")
    if process.returncode:
        raise SystemExit(process.returncode)
    return clock


def _reap() -> None:
    """Wait for what the stage left behind, so that its seconds count."""
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=sorted(STAGES))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4, help="of an epoch")
    parser.add_argument("--shards", type=Path, default=ROOT / "data/shards/streets")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if not (options.shards / "manifest.json").is_file():
        sys.exit(f"no shards in {options.shards}: run `dvc repro prepare` first")
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    values: dict[str, Any] = {
        "train.epoch_steps": options.steps,
        "train.precision": options.precision,
    }
    if options.what == "workers":
        values["cluster.num_workers"] = options.workers
    with tempfile.TemporaryDirectory() as scratch:
        workspace(Path(scratch), options.shards.resolve(), values)
        clock = measure(STAGES[options.what], Path(scratch))
    if options.out:
        options.out.write_text(json.dumps(clock.marks, indent=1) + "\n")


if __name__ == "__main__":
    main()
