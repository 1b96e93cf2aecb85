"""A folder of many small pictures: processor seconds and memory of download, prepare and DVC.

    python benchmarks/many_files.py 10000 100000

Pictures are 16x16, each with a mask. Times are of a clone of this repository with its own DVC, in
seconds of the processor with what started processes took (wall-clock beside them); memory is the
largest process's. Lines go to benchmarks/results/many_files.md.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "many_files.md"
HEAD = "| pictures | step | processor s | wall s | peak MB |\n|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Cost:
    """What a process took, with those that it started."""

    cpu_s: float
    wall_s: float
    peak_mb: float


def paint(folder: Path, count: int) -> None:
    """Pictures of noise, no two alike, and masks of two classes."""
    generator = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        name = f"{number:06d}.png"
        Image.fromarray(pixels).save(folder / "images" / name, compress_level=1)
        mask = (pixels[:, :, 0] > 128).astype(np.uint8)
        Image.fromarray(mask).save(folder / "masks" / name, compress_level=1)


def clone(folder: Path, data: Path) -> dict[str, str]:
    """This repository at its last commit, set to a folder of data; the environment to run it in."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    values = yaml.safe_load((folder / "params.yaml").read_text())
    values["data"] |= {"name": "folder", "path": str(data)}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(folder)}


def cost(command: list[str], folder: Path, environment: dict[str, str]) -> Cost:
    """Run a command and measure it."""
    start = time.monotonic()
    log = (folder / "log").open("wb")
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit((folder / "log").read_text())
    wall = time.monotonic() - start
    return Cost(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1000)


def measure(count: int) -> list[str]:
    """One line a step, of a folder of so many pictures."""
    python = [sys.executable, "-m"]
    steps = [
        ("download", [*python, "pipelines.download"]),
        ("download, nothing new", [*python, "pipelines.download"]),
        ("prepare", [*python, "pipelines.prepare"]),
        ("dvc repro prepare, first", ["dvc", "repro", "prepare"]),
        ("dvc status", ["dvc", "status", "download", "prepare"]),
        ("dvc repro prepare, nothing new", ["dvc", "repro", "prepare"]),
    ]
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        data, folder = Path(scratch, "own"), Path(scratch, "segcore")
        paint(data, count)
        environment = clone(folder, data)
        for name, command in steps:
            found = cost(command, folder, environment)
            lines.append(
                f"| {count:,} | {name} | {found.cpu_s:.1f} | {found.wall_s:.1f} "
                f"| {found.peak_mb:.0f} |"
            )
            print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    found = [line for count in sys.argv[1:] for line in measure(int(count))]
    RESULTS.write_text(HEAD + "\n".join(found) + "\n")
