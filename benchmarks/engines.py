"""Images per second of every semantic architecture by engine, on the CPU, in one run.

What is timed is what `segcore predict` runs for one image: uint8 pixels in, scores out. The ways of
a model take turns, so that a machine that slows down slows all of them. Each model runs in a
process of its own; one that cannot be exported is a row that says why.

`python benchmarks/engines.py` writes benchmarks/results/engines.{json,md}; `--only linknet unet`,
`--size 64 96` and `--seconds 1` make it short.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segcore.errors import ExportError
from segcore.export import export_package, load_exported
from segcore.machine import describe_machine
from segcore.models import create_model, list_models, model_card
from segcore.package import PackageSpec, load_package, save_package

RESULTS = Path(__file__).resolve().parent / "results"
OTHERS = ("torchvision:deeplabv3_resnet50", "torchvision:lraspp_mobilenet_v3_large")
FILES = {"onnxruntime": "onnx", "openvino": "openvino"}
HALF = "bf16"


def make_package(name: str, classes: int, folder: Path) -> Path:
    """A package with random weights; their values change no time."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=classes)
    for parameter in model.parameters():
        if not parameter.detach().any():  # scores that start at zero have no largest class
            nn.init.normal_(parameter, std=0.02)
    spec = PackageSpec(
        architecture=name,
        num_classes=classes,
        classes=tuple(f"class_{index}" for index in range(classes)),
        palette=((0, 0, 0),) * classes,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    return save_package(folder / "package", model, spec)


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The row of one model, measured in this process."""
    precisions = ("fp32", HALF) if describe_machine().fast_bf16 else ("fp32",)
    row: dict[str, Any] = {}
    ways: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        package = make_package(name, given.classes, Path(folder))
        for precision in precisions:
            ways[f"torch {precision}"] = load_package(package, precision=precision)
        for engine, form in FILES.items():
            start = time.process_time()
            try:
                file, agreement = export_package(package, Path(folder, "model"), to=form)
            except ExportError as error:
                row["error"] = str(error)
                continue
            row[f"{form} export CPU s"] = round(time.process_time() - start, 1)
            row[f"{form} same labels"] = agreement.labels if agreement else None
            for precision in precisions if engine == "openvino" else ("fp32",):
                loaded = load_exported(file, engine=engine, precision=precision)
                ways[f"{engine} {precision}"] = loaded
        pixels = torch.randint(0, 256, (1, *given.size, 3), dtype=torch.uint8)
        runs = {way: lambda found=found: found.network(pixels) for way, found in ways.items()}
        return row | take_turns(runs, given.seconds)


def take_turns(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Images a second, and CPU milliseconds an image, of each way: medians after a first call."""
    wall: dict[str, list[float]] = {way: [] for way in runs}
    cpu: dict[str, list[float]] = {way: [] for way in runs}
    for run in runs.values():
        run()
    turn = 0
    while turn < 3 or max(sum(times) for times in wall.values()) < seconds:
        for way in runs if turn % 2 == 0 else reversed(runs):
            start, used = time.perf_counter(), time.process_time()
            runs[way]()
            wall[way].append(time.perf_counter() - start)
            cpu[way].append(time.process_time() - used)
        turn += 1
    found: dict[str, float] = {}
    for way in runs:
        found[way] = round(1 / statistics.median(wall[way]), 2)
        found[f"{way} CPU ms"] = round(1e3 * statistics.median(cpu[way]), 1)
    return found


def in_own_process(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The row of one model from a process of its own; its "error" where that did not end well."""
    command = [
        sys.executable, __file__, "--one", name, "--classes", str(given.classes),
        "--size", *map(str, given.size), "--seconds", str(given.seconds),
        "--threads", str(given.threads),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=given.timeout)
    except subprocess.TimeoutExpired:
        return {"model": name, "error": f"not done after {given.timeout:g} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"model": name, "error": said[-1]}
    return {"model": name, **json.loads(lines[-1])}


def table(report: dict[str, Any]) -> str:
    """The report as Markdown: images a second, the fastest of the float32 ways in bold."""
    keys = [key for row in report["rows"] for key in row]
    ways = [key for key in dict.fromkeys(keys) if key.endswith(("fp32", HALF))]
    height, width = report["size"]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [
        "# Engines on the CPU",
        "",
        f"Images a second, one at a time, {height} x {width}, {report['classes']} classes, from "
        f"uint8 pixels to scores. {report['machine']}, {report['threads']} threads; {versions}. "
        "Same labels: share of the pixels that the exported file labels as torch does (float32).",
        "",
        "| " + " | ".join(["model", *ways, "same labels", "not measured"]) + " |",
        "|---|" + "---:|" * (len(ways) + 1) + "---|",
    ]
    for row in report["rows"]:
        best = max((row.get(way, 0) for way in ways if way.endswith("fp32")), default=0)
        cells = [row["model"]]
        for way in ways:
            bold = "**" if way.endswith("fp32") and row.get(way) == best else ""
            cells.append(f"{bold}{row[way]}{bold}" if way in row else "")
        shares = [row[key] for key in row if key.endswith("same labels")]
        cells.append(f"{min(shares):.5f}" if shares else "")
        lines.append("| " + " | ".join([*cells, row.get("error", "")]) + " |")
    return "\n".join(lines) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=2, default=[360, 480], metavar=("H", "W"))
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--only", nargs="+", help="these models")
    parser.add_argument("--seconds", type=float, default=10, help="of the slowest way of a model")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--timeout", type=float, default=900, help="seconds a model")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of engines.{json,md}")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    torch.set_num_threads(given.threads)
    if given.one:
        print(json.dumps(measure(given.one, given)))
        return
    flat = [name for name in list_models("semantic") if model_card(name).input_dims == 2]
    names = given.only or [*flat, *OTHERS]
    report: dict[str, Any] = {
        "size": given.size,
        "classes": given.classes,
        "threads": given.threads,
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": {name: version(name) for name in ("torch", "onnxruntime", "openvino")},
        "rows": [],
    }
    given.out.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names, start=1):
        report["rows"].append(in_own_process(name, given))
        print(f"[{index}/{len(names)}] {json.dumps(report['rows'][-1])}", flush=True)
        (given.out / "engines.json").write_text(json.dumps(report, indent=1) + "\n")
        (given.out / "engines.md").write_text(table(report))


if __name__ == "__main__":
    main()
