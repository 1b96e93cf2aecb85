"""What a GPU at hand should answer, in order of value, each row saved as it is measured.

    python -m benchmarks.gpu --pack          # before: CamVid as JPEG shards, where the archive is
    python -m benchmarks.gpu                 # there: 40 minutes
    python -m benchmarks.gpu --dry-run       # here: every part on the CPU, tiny

`segcore` alone is needed: no Ray, MLflow, DVC, YAML. Each part has its share of the minutes and a
process of its own; a row that stands in <out>/gpu.json for this machine is not measured again, so
a second sitting goes on where the first ended. Rows that failed say why; --again forgets the rows
of the parts given by --only. gpu.md beside it are the tables.
"""

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.gpu import results
from benchmarks.gpu.bench import Bench
from segcore.data.prepare import prepare
from segcore.datasets import DataSource, create_dataset
from segcore.errors import DataError, SegcoreError

ROOT = Path(__file__).parents[2]
SHARDS = ROOT / "data" / "gpu" / "camvid"
MIRROR = Path(os.environ.get("SEGCORE_MIRROR") or ROOT / "../shared/data")
MOST_MB = 60
GRACE_S = 120.0  # to end a row that began in time
# Minutes of forty, in order of value.
PARTS: dict[str, float] = {
    "exact": 4.0,
    "precision": 5.0,
    "steps": 9.0,
    "feed": 2.0,
    "detection": 2.0,
    "predict": 2.0,
    "trained": 16.0,
}


def pack(folder: Path) -> float:
    """CamVid as JPEG shards; their megabytes.

    Raises:
        DataError: they are too large to take along.
    """
    mirror = MIRROR if MIRROR.is_dir() else None
    with tempfile.TemporaryDirectory() as raw:
        source = create_dataset("camvid", DataSource(raw=Path(raw), mirror=mirror))
        source.download()
        prepare(source, folder, image_encoding="jpeg")
    found = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    if found > MOST_MB:
        raise DataError(f"{folder} has {found:.1f} MB, more than {MOST_MB}: encode it smaller")
    return found


def run_part(name: str, bench: Bench, minutes: float) -> None:
    """Measure rows of a part until its minutes are over."""
    end, where = time.monotonic() + 60.0 * minutes, results.machine(bench)
    part = importlib.import_module(f"benchmarks.gpu.{name}")
    for row, measure in part.plan(bench):
        if results.known(results.read(bench.out), name, row, where):
            continue
        if time.monotonic() > end:
            print(f"{name}: out of minutes before {row}", flush=True)
            return
        began = time.perf_counter()
        try:
            figures = measure()
        except Exception as error:
            figures = {"error": said(error)}
        figures["seconds"] = round(time.perf_counter() - began, 1)
        results.add(bench.out, name, row, where, figures)
        print(f"{name}, {row}: {figures}", flush=True)
        if bench.device == "cuda":
            torch.cuda.empty_cache()


def said(error: Exception) -> str:
    """An error in a line: a rank's own error is at the end of what its group says."""
    lines = str(error).strip().splitlines() or [""]
    told = lines[0][:200] if len(lines) == 1 else f"{lines[0][:100]} ... {lines[-1][:200]}"
    return f"{type(error).__name__}: {told}"


def in_own_process(name: str, given: list[str], minutes: float) -> None:
    """A part in a process of its own; one that hangs or dies takes no other with it."""
    command = [sys.executable, "-m", "benchmarks.gpu", *given, "--part", name]
    command += ["--minutes", str(minutes)]
    try:
        done = subprocess.run(command, cwd=ROOT, timeout=60.0 * minutes + GRACE_S)
    except subprocess.TimeoutExpired:
        print(f"{name}: stopped, a row took longer than its part has", flush=True)
        return
    if done.returncode:
        print(f"{name}: ended with exit code {done.returncode}", flush=True)


def forget(folder: Path, parts: list[str]) -> None:
    """Drop the rows of some parts."""
    rows = [row for row in results.read(folder) if row["part"] not in parts]
    results.write(folder, rows)


def dry_shards(folder: Path) -> Path:
    """A few small pictures."""
    options = {"num_train": 6, "num_val": 2, "num_test": 3, "height": 64, "width": 96}
    source = create_dataset("streets", DataSource(raw=folder / "raw", options=options))
    source.download()
    prepare(source, folder / "shards", workers=1)
    return folder / "shards"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pack", action="store_true", help="make the shards, and end")
    parser.add_argument("--dry-run", action="store_true", help="every part on the CPU, tiny")
    parser.add_argument("--shards", type=Path, default=SHARDS)
    parser.add_argument("--minutes", type=float, default=40.0, help="of the whole")
    parser.add_argument("--row-minutes", type=float, default=1.5, help="of training, a system")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--again", action="store_true", help="forget rows of these parts first")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--part", choices=list(PARTS), help="one part, in this process")
    return parser.parse_args(arguments)


def dry_run(given: argparse.Namespace) -> None:
    """Every part on the CPU, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        shards = dry_shards(Path(folder))
        bench = Bench(
            device="cpu", dry=True, shards=shards, out=given.out.resolve(), row_minutes=0.01
        )
        for name in given.only:
            run_part(name, bench, given.minutes)


def sitting(given: argparse.Namespace) -> None:
    """The parts in order; what one leaves of its minutes, the later ones share."""
    end = time.monotonic() + 60.0 * given.minutes
    passed = ["--shards", str(given.shards.resolve()), "--out", str(given.out.resolve())]
    passed += ["--row-minutes", str(given.row_minutes)]
    for number, name in enumerate(given.only):
        left = (end - time.monotonic()) / 60.0
        if left > 0:
            later = sum(PARTS[other] for other in given.only[number:])
            in_own_process(name, passed, left * PARTS[name] / later)


def main(arguments: list[str] | None = None) -> int:
    """Answer what is missing; 2 where there is nothing to answer with."""
    given = parse(arguments)
    if given.pack:
        try:
            print(f"{given.shards}: {pack(given.shards):.1f} MB")
        except SegcoreError as error:
            print(error, file=sys.stderr)
            return 2
        return 0
    if given.dry_run:
        dry_run(given)
        return 0
    lacking = lacks(given.shards)
    if lacking:
        print(lacking, file=sys.stderr)
        return 2
    if given.part:
        bench = Bench(
            device="cuda", dry=False, shards=given.shards, out=given.out,
            row_minutes=given.row_minutes,
        )  # fmt: skip
        run_part(given.part, bench, given.minutes)
        return 0
    if given.again:
        forget(given.out, given.only)
    sitting(given)
    return 0


def lacks(shards: Path) -> str:
    """What is missing for a run on a GPU, and what to do; "" where nothing is."""
    if not (shards / "manifest.json").is_file():
        return (
            f"no shards at {shards}: run `python -m benchmarks.gpu --pack` where the archive of "
            "CamVid is, and bring them here"
        )
    if not torch.cuda.is_available():
        return "torch finds no GPU: run it where there is one, or --dry-run here"
    return ""


if __name__ == "__main__":
    sys.exit(main())
