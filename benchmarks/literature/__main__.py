"""The literature's table of a dataset: every semantic architecture on its published recipe.

    python -m benchmarks.literature                        # CamVid 120x160, 6 minutes each
    python -m benchmarks.literature --cpu-clock            # minutes of the process, not the wall
    python -m benchmarks.literature --minutes 0.1 --only enet --out /tmp/check

With a GPU: --device cuda --size 360 480 --precision bf16 --channels-last --compile. The shards are
made under outputs/literature where they are missing, from the archive in SEGCORE_MIRROR or the
network; --shards takes those that are there. Each system trains in a process of its own. A row that
stands in <out>/literature-<dataset>.json is not run again, so that a sitting may end anywhere; one
that failed is. literature-<dataset>.md beside it is the table.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import segcore
from benchmarks.literature import table
from benchmarks.literature.recipes import flat_names
from benchmarks.literature.rows import Setting, about, measure
from segcore.data.prepare import prepare
from segcore.datasets import DataSource, create_dataset

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "outputs" / "literature"
MIRROR = Path(os.environ.get("SEGCORE_MIRROR") or ROOT / "../shared/data")


def make_shards(name: str, size: tuple[int, int]) -> Path:
    """The shards of a dataset at one size; made where they are missing."""
    folder = WORK / f"{name}-{size[0]}x{size[1]}"
    if not (folder / "manifest.json").is_file():
        mirror = MIRROR if MIRROR.is_dir() else None
        source = create_dataset(name, DataSource(raw=WORK / "raw" / name, mirror=mirror))
        source.download()
        prepare(source, folder, size=size)
    return folder


def in_own_process(name: str, given: list[str], timeout: float | None) -> dict[str, Any]:
    """What `measure` found, or why there is no row."""
    command = [sys.executable, "-m", "benchmarks.literature", *given, "--one", name]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {timeout:g} s"}
    if done.returncode < 0:
        return {"error": f"killed by signal {-done.returncode}: out of memory, most likely"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.literature",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", default="camvid")
    parser.add_argument("--size", type=int, nargs=2, default=[120, 160], metavar=("H", "W"))
    parser.add_argument("--shards", type=Path, help="in place of --dataset and --size")
    parser.add_argument("--minutes", type=float, default=6.0, help="of training, each")
    parser.add_argument("--cpu-clock", action="store_true", help="count processor time a thread")
    parser.add_argument("--only", nargs="+", choices=flat_names(), default=flat_names())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-batch", type=int, default=4, help="larger batches are cut to it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--pretrained", action="store_true", help="ImageNet's, as published")
    parser.add_argument("--at-once", type=int, default=1, help="trainings that share the device")
    parser.add_argument("--timeout", type=float, help="seconds of the wall for a row")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    parser.add_argument("--one", choices=flat_names(), help="one row, as JSON on the last line")
    return parser.parse_args(arguments)


def setting_of(given: argparse.Namespace) -> Setting:
    names = ("minutes", "cpu_clock", "seed", "max_batch", "device", "precision", "channels_last")
    values = {name: getattr(given, name) for name in names}
    values |= {"compile": given.compile, "pretrained": given.pretrained, "at_once": given.at_once}
    return Setting(shards=given.shards, **values)


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing; 1 where a row failed, 2 where there is no data."""
    given = parse(arguments)
    passed = list(sys.argv[1:] if arguments is None else arguments)
    if given.shards is None:
        try:
            given.shards = make_shards(given.dataset, (given.size[0], given.size[1]))
        except segcore.SegcoreError as error:
            print(error, file=sys.stderr)
            return 2
    given.shards = given.shards.resolve()
    passed += ["--shards", str(given.shards)]
    setting = setting_of(given)
    if given.one:
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(len(os.sched_getaffinity(0)))
        print(json.dumps(measure(given.one, setting)))
        return 0
    dataset = segcore.open_shards(given.shards)
    file = given.out / f"literature-{dataset.name}.json"
    failed = False
    for name in given.only:
        rows, wanted = table.read(file), about(name, setting, dataset)
        same = [row for row in rows if {key: row.get(key) for key in wanted} == wanted]
        if any("error" not in row for row in same):
            print(f"{name}: there already", flush=True)
            continue
        row = {**wanted, **in_own_process(name, passed, given.timeout)}
        table.write(file, [*(old for old in rows if old not in same), row])
        failed |= "error" in row
        print(f"{name}: {row.get('error') or row['miou']}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
