"""From shards over the cache in RAM to the device: what a training step may wait for."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import segcore
from benchmarks.gpu.bench import Bench, Plan, Row
from segcore.data.loader import Loader, create_loaders
from segcore.engine.batches import to_device
from segcore.tasks import get_kind

AUGMENT = {"none": {}, "flip": {"hflip": 0.5}, "scale and colour": {"color": 0.2}}
WORKERS = (0, 2, 4, 8)
MODEL = "fcn_small"
COPIED_MIB = 256


def plan(bench: Bench) -> Plan:
    """What training waits for, then its parts."""
    yield f"training {MODEL}", lambda: training(bench)
    for name in AUGMENT:
        for workers in WORKERS[:2] if bench.dry else WORKERS:

            def measure(name: str = name, workers: int = workers) -> Row:
                return loading(bench, name, workers)

            yield f"augment {name}, {workers} workers", measure
    yield "copy to the device", lambda: copying(bench)


def open_loader(bench: Bench, augment: str, workers: int) -> Loader:
    dataset = segcore.open_shards(bench.shards)
    options: dict[str, Any] = dict(AUGMENT[augment])
    if augment == "scale and colour":
        options |= {"scale": [0.5, 2.0], "crop": list(dataset.split("train").sizes[0])}
    train, _ = create_loaders(
        dataset, batch_size=bench.batch, seed=0, augment=options, workers=workers
    )
    return train


def loading(bench: Bench, augment: str, workers: int) -> Row:
    """Images a second of the first epoch, which decodes, and of later ones, onto the device."""
    next(iter(open_loader(bench, augment, 0)))  # imports what the changes of pictures take
    loader = open_loader(bench, augment, workers)
    row: Row = {}
    for number, title in enumerate(("first epoch images/s", "later images/s")):
        began, images = time.perf_counter(), 0
        for batch in loader.epoch(number):
            to_device(batch, torch.device(bench.device), channels_last=True)
            images += len(batch["image"])
        bench.wait()
        row[title] = round(images / (time.perf_counter() - began), 1)
    return row


class Same:
    """One batch again and again: training that never waits for data."""

    def __init__(self, batch: dict[str, Tensor], steps: int) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def epoch(self, number: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batch, for each step."""
        return iter([self.batch] * (self.steps - start))


def training(bench: Bench) -> Row:
    """Images a second with the loader, and with a batch whose pictures lie on the device."""
    row: Row = {}
    loader = open_loader(bench, "flip", 0)
    resident = next(loader.epoch(0))
    resident["image"] = to_device(resident["image"], torch.device(bench.device))
    for title, fed in (("loader", loader), ("resident", Same(resident, len(loader)))):
        row[f"{title} images/s"] = round(images_per_s(bench, fed), 1)
    row["share of resident"] = round(row["loader images/s"] / row["resident images/s"], 3)
    return row


def images_per_s(bench: Bench, loader: Any) -> float:
    """Of the second epoch of a training."""
    kind, dataset = get_kind("semantic"), segcore.open_shards(bench.shards)
    torch.manual_seed(0)
    model = segcore.create_model(MODEL, **kind.model_facts(dataset))
    task = kind.create_task(dataset, loss="cross_entropy")
    options: dict[str, Any] = {"precision": "bf16", "channels_last": True, "lr": 1e-4}
    for epoch in segcore.fit(task, model, loader, epochs=2, device=bench.device, **options):
        last = epoch.metrics["images_per_s"]
    return last


def copying(bench: Bench) -> Row:
    """GB/s of a plain copy from pageable and from pinned memory."""
    mib = 4 if bench.dry else COPIED_MIB
    row: Row = {}
    for title, pinned in (("pageable", False), ("pinned", True)):
        if pinned and bench.device != "cuda":
            continue
        block = torch.zeros(mib << 20, dtype=torch.uint8)
        block = block.pin_memory() if pinned else block
        target = torch.empty_like(block, device=bench.device)
        took = bench.seconds(lambda a=block, b=target: b.copy_(a, non_blocking=True))
        row[f"{title} GB/s"] = round((mib << 20) / took / 1e9, 2)
    return row
