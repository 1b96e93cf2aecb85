"""Mask R-CNN beside torchvision's, with the same weights, on the device."""

from contextlib import nullcontext

import torch
from torch import nn

from benchmarks.gpu.bench import Bench, Plan, Row
from benchmarks.mask_rcnn import ANCHORS, MODES, WHO, build, make_batch
from segcore.engine.batches import to_device

SIZE, DRY_SIZE = (800, 1088), (96, 96)
SIZES = {"paper's": SIZE, "small": (256, 320)}
PRECISIONS = ("fp32", "bf16", "fp16")


def plan(bench: Bench) -> Plan:
    """A row a precision and mode, the two in turn."""
    for title, size in {"tiny": DRY_SIZE}.items() if bench.dry else SIZES.items():
        for precision in PRECISIONS[:1] if bench.dry else PRECISIONS:
            for mode in MODES:

                def measure(
                    mode: str = mode, precision: str = precision, size: tuple[int, int] = size
                ) -> Row:
                    return compare(bench, mode, precision, size)

                yield f"{mode}, {precision}, {title}", measure


def compare(bench: Bench, mode: str, precision: str, size: tuple[int, int]) -> Row:
    """Milliseconds and memory of each, and how many times as fast ours is."""
    row: Row = {"size": f"{size[0]} x {size[1]}"}
    for who in WHO:
        if bench.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        model = build(who, list(ANCHORS), size=size).to(bench.device)
        row[f"{who} ms"] = round(1e3 * run(bench, model, mode, precision, size), 2)
        if bench.device == "cuda":
            row[f"{who} GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    row["times as fast"] = round(row["torchvision ms"] / row["segcore ms"], 3)
    return row


def run(bench: Bench, model: nn.Module, mode: str, precision: str, size: tuple[int, int]) -> float:
    """Seconds of a training step, or of an inference, of two pictures."""
    device = torch.device(bench.device)
    images, targets = (to_device(part, device) for part in make_batch(size))
    model.train(mode == "train")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}

    def low() -> object:
        lower = kinds.get(precision)
        return torch.autocast(device.type, dtype=lower) if lower else nullcontext()

    def call() -> None:
        if mode == "predict":
            with torch.inference_mode(), low():
                model(images)
            return
        with low():
            terms = model(images, targets)
        optimizer.zero_grad()
        torch.stack([term.float() for term in terms.values()]).sum().backward()
        optimizer.step()

    return bench.seconds(call)
