"""Every architecture beside segmentation_models_pytorch and torchvision, in one run.

Parameters, FLOPs, seconds of a forward (batch 1) and of a training step, peak memory; on the CPU,
and on the GPU in bf16 and channels_last where there is one. Each model runs in a process of its
own, so that one that fails, or runs out of memory or time, is a row that says why.

`python benchmarks/zoo.py` writes benchmarks/results/zoo.{json,md}; `--only linknet smp:Unet` and
`--size 64 96` make it short.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.models import create_model, list_models, model_card
from segcore.models.blocks import crop_to, pad_to_multiple
from segcore.summary import count_flops

RESULTS = Path(__file__).resolve().parent / "results"
# Ours with the encoders that theirs have, theirs, and torchvision's.
SAME_ENCODERS = ("unet:resnet34", "linknet:resnet34", "pspnet:resnet50", "fcn8s:resnet50")
OTHERS = (
    "smp:Unet:resnet34",
    "smp:Linknet:resnet18",
    "smp:Linknet:resnet34",
    "smp:PSPNet:resnet50",
    "smp:FPN:resnet50",
    "smp:DeepLabV3Plus:resnet50",
    "torchvision:fcn_resnet50",
    "torchvision:deeplabv3_resnet50",
    "torchvision:lraspp_mobilenet_v3_large",
)
BUDGET_S = 10.0  # of each timing, after its warm-up
COLUMNS = {
    "model": "model",
    "parameters": "parameters",
    "gflops": "GFLOPs",
    "cpu_forward_s": "CPU forward s",
    "cpu_step_s": "CPU step s",
    "cpu_forward_mib": "CPU forward MiB",
    "cpu_step_mib": "CPU step MiB",
    "gpu_forward_ms": "GPU forward ms",
    "gpu_step_ms": "GPU step ms",
    "gpu_step_mib": "GPU step MiB",
    "error": "not measured",
}


class Padded(nn.Module):
    """A model that takes multiples of 32 only, at any size; ours pad by themselves."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return crop_to(self.model(pad_to_multiple(x, 32)), x.shape[2:])


def build(name: str, classes: int) -> nn.Module:
    """A model by "name", "name:backbone", "smp:Class:encoder" or "torchvision:builder"."""
    library, _, rest = name.partition(":")
    if library == "smp":
        import segmentation_models_pytorch as smp

        kind, encoder = rest.split(":")
        model = getattr(smp, kind)(encoder_name=encoder, encoder_weights=None, classes=classes)
        return Padded(model)
    if library == "torchvision" or not rest:
        return create_model(name, num_classes=classes)
    return create_model(library, num_classes=classes, backbone=rest)


def shape_of(name: str, size: Sequence[int]) -> tuple[int, ...]:
    """The image's size; for a model of volumes one of as many voxels, 16 slices deep."""
    library = name.partition(":")[0]
    if library in list_models() and model_card(library).input_dims == 3:
        return (16, size[0] // 4, size[1] // 4)
    return tuple(size)


def median_s(run: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call, after one that does not count; fewer calls where they are long."""
    run()
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < BUDGET_S:
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forward_and_step(
    model: nn.Module, x: Tensor, batch: int, classes: int, autocast: bool
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Two calls: an inference of x, and a training step on `batch` images like it."""
    images = x.expand(batch, *x.shape[1:]).contiguous()
    target = torch.randint(classes, (batch, *x.shape[2:]), device=x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)

    def outputs(y: Tensor | dict[str, Tensor]) -> list[Tensor]:
        return list(y.values()) if isinstance(y, dict) else [y]

    def forward() -> None:
        model.eval()
        with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, autocast):
            model(x)
        if x.is_cuda:
            torch.cuda.synchronize()

    def step() -> None:
        model.train()
        with torch.autocast(x.device.type, torch.bfloat16, autocast):
            loss = torch.stack([F.cross_entropy(y, target) for y in outputs(model(images))]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if x.is_cuda:
            torch.cuda.synchronize()

    return forward, step


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The row of one model, measured in this process."""
    torch.manual_seed(0)
    size = shape_of(name, given.size)
    model = build(name, given.classes)
    row: dict[str, Any] = {
        "size": list(size),
        "parameters": sum(p.numel() for p in model.parameters()),
        "gflops": round(count_flops(model, size) / 1e9, 2),
    }
    before = peak_mib()
    x = torch.randn(1, 3, *size)
    forward, step = forward_and_step(model, x, given.train_batch, given.classes, False)
    row["cpu_forward_s"] = round(median_s(forward, given.repeats), 4)
    row["cpu_forward_mib"] = round(peak_mib() - before)
    print(json.dumps(row), flush=True)  # what is known, should the step not fit
    row["cpu_step_s"] = round(median_s(step, given.repeats), 4)
    row["cpu_step_mib"] = round(peak_mib() - before)
    if torch.cuda.is_available():
        print(json.dumps(row), flush=True)
        layout = torch.channels_last if len(size) == 2 else torch.channels_last_3d
        model = model.to("cuda", memory_format=layout)
        x = x.to("cuda", memory_format=layout)
        forward, step = forward_and_step(model, x, given.train_batch, given.classes, True)
        row["gpu_forward_ms"] = round(1e3 * median_s(forward, 10 * given.repeats), 2)
        torch.cuda.reset_peak_memory_stats()
        row["gpu_step_ms"] = round(1e3 * median_s(step, 10 * given.repeats), 2)
        row["gpu_step_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return row


def in_own_process(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The row of one model from a process of its own; its "error" where that did not end well."""
    command = [
        sys.executable, __file__, "--one", name, "--classes", str(given.classes),
        "--size", *map(str, given.size), "--repeats", str(given.repeats),
        "--train-batch", str(given.train_batch), "--threads", str(given.threads),
    ]  # fmt: skip
    error = ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=given.timeout)
        written = done.stdout
        if done.returncode < 0:
            error = f"killed by signal {-done.returncode}: out of memory, most likely"
        elif done.returncode:
            error = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    except subprocess.TimeoutExpired as late:
        written = late.stdout.decode() if isinstance(late.stdout, bytes) else (late.stdout or "")
        error = f"not done after {given.timeout:g} s"
    known = [line for line in written.splitlines() if line.startswith("{")]
    row = {"model": name, **(json.loads(known[-1]) if known else {})}
    return {**row, "error": error} if error else row


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    used = [key for key in COLUMNS if any(key in row for row in report["rows"])]
    height, width = report["size"]
    gpu = f", {report['gpu']} (bf16, channels_last)" if report["gpu"] else ""
    lines = [
        "# The zoo beside other libraries",
        "",
        f"{height} x {width}, {report['classes']} classes; forward of 1 image, training step of "
        f"{report['train_batch']}. {report['machine']}, {report['threads']} threads, torch "
        f"{report['torch']}{gpu}. FLOPs are 2 for each multiply-add; CPU memory is the process's "
        "peak over what it had with the model built. unet3d takes a volume of as many voxels.",
        "",
        "| " + " | ".join(COLUMNS[key] for key in used) + " |",
        "|" + "|".join("---" if key in ("model", "error") else "---:" for key in used) + "|",
    ]
    for row in report["rows"]:
        cells = [row.get(key, "") for key in used]
        lines.append(
            "| " + " | ".join(f"{c:,}" if isinstance(c, int) else str(c) for c in cells) + " |"
        )
    return "\n".join(lines) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=2, default=[360, 480], metavar=("H", "W"))
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--only", nargs="+", help="these models; smp:Unet matches every encoder")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--train-batch", type=int, default=2, help="2: batch norm after pools to 1")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--timeout", type=float, default=900, help="seconds a model")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of zoo.json and zoo.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    torch.set_num_threads(given.threads)
    if given.one:
        print(json.dumps(measure(given.one, given)))
        return
    names = [*list_models("semantic"), *SAME_ENCODERS, *OTHERS]
    if given.only:
        names = [n for n in names if any(n == o or n.startswith(f"{o}:") for o in given.only)]
    report: dict[str, Any] = {
        "size": given.size,
        "classes": given.classes,
        "train_batch": given.train_batch,
        "threads": given.threads,
        "machine": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "rows": [],
    }
    given.out.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names, start=1):
        row = in_own_process(name, given)
        report["rows"].append(row)
        print(f"[{index}/{len(names)}] {json.dumps(row)}", flush=True)
        (given.out / "zoo.json").write_text(json.dumps(report, indent=1) + "\n")
        (given.out / "zoo.md").write_text(table(report))


if __name__ == "__main__":
    main()
