"""Memory and speed of `segcore predict` over few and many pictures: flat in their number.

    python benchmarks/predict_many.py [--counts 2000 20000] [--ways process ray] [--model enet]

The pictures are rendered streets of 480 x 360, a few that differ, linked under other names. A job
is a process of its own; every half second its resident memory and that of all its descendants is
looked at. "net" is the network alone, on one picture over and over. Rows stand in
benchmarks/results/predict_many.{json,md}.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from predict import MEAN, SCENES, STD, network, save_pictures

import segcore
from segcore.datasets.streets.scene import CLASSES, PALETTE
from segcore.machine import choose_precision, describe_machine

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SIZE = (360, 480)
LOOK_S = 0.5
RAY = 10**9  # pictures that are too few for Ray


def make_pictures(folder: Path, count: int) -> None:
    """A few pictures, and links to them."""
    save_pictures(folder, min(count, SCENES), SIZE)
    for number in range(SCENES, count):
        os.link(folder / f"{number % SCENES:04}.png", folder / f"{number:07}.png")


def make_package(folder: Path, name: str) -> Path:
    """Random weights: labels do not matter here."""
    model = segcore.create_model(name, num_classes=len(CLASSES)).eval()
    spec = segcore.PackageSpec(
        architecture=name, num_classes=len(CLASSES), classes=CLASSES, palette=PALETTE,
        mean=MEAN, std=STD,
    )  # fmt: skip
    return segcore.save_package(folder, model, spec)


def resident(process: psutil.Process) -> tuple[float, float]:
    """Megabytes of a process, and of the largest of its descendants."""
    try:
        parts = [child.memory_info().rss for child in process.children(recursive=True)]
        return process.memory_info().rss / 1e6, max(parts, default=0) / 1e6
    except psutil.Error:
        return 0.0, 0.0


def run(way: str, pictures: Path, package: Path, work: Path) -> dict[str, float]:
    """One job."""
    code = (
        "import sys; from pathlib import Path; from pipelines.params import Params;"
        "from pipelines.prediction.run import predict;"
        "p = Params.load(sys.argv[1]).override({'predict.ray_min_images': int(sys.argv[2])});"
        "print(predict(p, images=sys.argv[3], model=sys.argv[4], out=Path(sys.argv[5]),"
        " overlays=False))"
    )
    least = "1" if way == "ray" else str(RAY)
    given = [str(ROOT / "params.yaml"), least, str(pictures), str(package), str(work / "out")]
    start, driver, worker = time.perf_counter(), 0.0, 0.0
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SEGCORE_ROOT": str(work)}
    job = psutil.Popen([sys.executable, "-c", code, *given], env=environment)
    while job.poll() is None:
        own, other = resident(job)
        driver, worker = max(driver, own), max(worker, other)
        time.sleep(LOOK_S)
    if job.returncode:
        raise subprocess.CalledProcessError(job.returncode, "predict")
    return {"seconds": time.perf_counter() - start, "driver_mb": driver, "worker_mb": worker}


def run_net(pictures: Path, package: Path) -> dict[str, float]:
    """The network alone, in the precision that predict takes, for as many pictures."""
    precision = choose_precision("auto", describe_machine())
    start = time.perf_counter()
    network(pictures, pictures, package=package, precision=precision, batch_size=1)
    own, _ = resident(psutil.Process())
    return {"seconds": time.perf_counter() - start, "driver_mb": own, "worker_mb": 0.0}


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| way | model | pictures | images/s | driver, MB | largest worker, MB |"]
    lines += ["|---" * 6 + "|"]
    for row in rows:
        rate = row["pictures"] / row["seconds"]
        lines.append(
            f"| {row['way']} | {row['model']} | {row['pictures']:,} | {rate:.1f} "
            f"| {row['driver_mb']:.0f} | {row['worker_mb']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[2000, 20000])
    ways = ["net", "process", "ray"]
    parser.add_argument("--ways", nargs="+", default=ways, choices=ways)
    parser.add_argument("--model", default="enet")
    given = parser.parse_args()
    file = RESULTS / "predict_many.json"
    for count in given.counts:
        for way in given.ways:
            with tempfile.TemporaryDirectory() as folder:
                work = Path(folder)
                make_pictures(work / "pictures", count)
                package = make_package(work / "package", given.model)
                pictures = work / "pictures"
                found = (
                    run_net(pictures, package)
                    if way == "net"
                    else run(way, pictures, package, work)
                )
            about = {"way": way, "model": given.model, "pictures": count}
            about |= {"cores": len(os.sched_getaffinity(0)), "machine": platform.machine()}
            rows = json.loads(file.read_text()) if file.is_file() else []
            rows.append({**about, **found})
            file.write_text(json.dumps(rows, indent=1) + "\n")
            file.with_suffix(".md").write_text(table(rows))
            print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
