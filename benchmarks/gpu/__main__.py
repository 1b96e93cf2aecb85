"""What a GPU at hand should answer, in order of value, each row saved as it is measured.

    python -m benchmarks.gpu --pack          # before: CamVid as JPEG shards, where the archive is
    python -m benchmarks.gpu                 # there: 40 minutes
    python -m benchmarks.gpu --dry-run       # here: every part on the CPU, tiny

`segcore` alone is needed: no Ray, MLflow, DVC, YAML. Each phase has its share of the minutes. Parts
whose figures are not of time run at once, in several processes each: a small network does not fill
a card, and the compiler waits for processors. A part that takes times runs alone. A row that stands
in <out>/gpu.json for this machine is not measured again, so a second sitting goes on where the
first ended. Rows that failed say why; --again forgets the rows of the parts given by --only. gpu.md
beside it are the tables.
"""

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
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


@dataclass(frozen=True)
class Phase:
    """Parts that run at once.

    Args:
        minutes: of forty.
        processes: of each part, among which its rows are shared out.
    """

    minutes: float
    processes: Mapping[str, int]


# In order of value. The compiler's code of the first is in its cache where the second times it.
PHASES = (
    Phase(8.0, {"exact": 2, "tasks": 2, "precision": 3, "compile": 5}),
    Phase(8.0, {"steps": 1}),
    Phase(2.0, {"detection": 1}),
    Phase(2.0, {"predict": 1}),
    Phase(2.0, {"feed": 1}),
    Phase(18.0, {"trained": 4}),
)
PARTS = tuple(part for phase in PHASES for part in phase.processes)


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


def run_part(name: str, bench: Bench, minutes: float, *, share: int = 0, of: int = 1) -> None:
    """Measure every `of`-th row of a part, from `share` on, until its minutes are over."""
    end, where = time.monotonic() + 60.0 * minutes, results.machine(bench)
    part = importlib.import_module(f"benchmarks.gpu.{name}")
    for row, measure in islice(part.plan(bench), share, None, of):
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


def run_phase(processes: Mapping[str, int], given: list[str], minutes: float) -> None:
    """Parts in processes of their own; one that hangs or dies takes no other with it."""
    together = sum(processes.values())
    env = dict(os.environ)
    if together > 1:
        threads = str(max(1, (os.cpu_count() or 1) // together))
        env |= {"OMP_NUM_THREADS": threads, "TORCHINDUCTOR_COMPILE_THREADS": threads}
    started: list[tuple[str, subprocess.Popen[bytes]]] = []
    for name, number in processes.items():
        for share in range(number):
            command = [sys.executable, "-m", "benchmarks.gpu", *given, "--part", name]
            command += ["--minutes", str(minutes), "--share", str(share), str(number)]
            started.append((name, subprocess.Popen(command, cwd=ROOT, env=env)))
    end = time.monotonic() + 60.0 * minutes + GRACE_S
    for name, process in started:
        try:
            code = process.wait(timeout=max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            print(f"{name}: stopped, a row took longer than its part has", flush=True)
            continue
        if code:
            print(f"{name}: ended with exit code {code}", flush=True)


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
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--again", action="store_true", help="forget rows of these parts first")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="through torch.compile, of systems that train before their minutes; and steps too",
    )
    parser.add_argument("--part", choices=PARTS, help="one part, in this process")
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), help="K N: rows K, K + N ...")
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
    """The phases in order; what one leaves of its minutes, the later ones share."""
    end = time.monotonic() + 60.0 * given.minutes
    passed = ["--shards", str(given.shards.resolve()), "--out", str(given.out.resolve())]
    passed += ["--row-minutes", str(given.row_minutes)]
    passed += ["--compile" if given.compile else "--no-compile"]
    asked = []
    for phase in PHASES:
        processes = {name: n for name, n in phase.processes.items() if name in given.only}
        asked += [Phase(phase.minutes, processes)] if processes else []
    for number, phase in enumerate(asked):
        left = (end - time.monotonic()) / 60.0
        if left > 0:
            later = sum(other.minutes for other in asked[number:])
            run_phase(phase.processes, passed, left * phase.minutes / later)


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
            row_minutes=given.row_minutes, compile=given.compile, at_once=given.share[1],
        )  # fmt: skip
        share, of = given.share
        run_part(given.part, bench, given.minutes, share=share, of=of)
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
