"""fp16 and bf16 against fp32: loss and gradient of every architecture, and short trainings."""

import math

import torch
from torch import Tensor

import segcore
from benchmarks.gpu.bench import (
    Bench,
    Noise,
    Plan,
    Row,
    build,
    noise_task,
    relative,
    without_dropout,
)
from segcore.data.loader import create_loaders
from segcore.engine.options import PRECISIONS
from segcore.tasks import get_kind

STEPS, DRY_STEPS = 120, 2
TRAINED = ("linknet", "fc_densenet56", "unet_small")
SCALE = 2.0**12  # of the loss in fp16, whose gradients would else vanish


def plan(bench: Bench) -> Plan:
    """Trainings first: they are what counts."""
    for name in bench.names[:1] if bench.dry else TRAINED:
        yield f"training {name}", lambda name=name: train(bench, name)
    for name in bench.names:
        yield name, lambda name=name: step(bench, name)


def train(bench: Bench, name: str) -> Row:
    """The same steps in each precision: loss over the epoch, validation."""
    dataset = segcore.open_shards(bench.shards)
    kind, row = get_kind("semantic"), {}
    for precision in PRECISIONS:
        torch.manual_seed(0)
        model = segcore.create_model(name, **kind.model_facts(dataset))
        steps = DRY_STEPS if bench.dry else STEPS
        train, val = create_loaders(
            dataset, batch_size=bench.batch, seed=0, epoch_steps=steps, augment={"hflip": 0.5}
        )
        for epoch in segcore.fit(
            kind.create_task(dataset, loss="cross_entropy"), model, train, val, epochs=1,
            optimizer="adam", lr=1e-3, precision=precision, device=bench.device,
            channels_last=True,
        ):  # fmt: skip
            metrics = epoch.metrics
        row[f"{precision} loss"] = round(metrics["train/loss"], 4)
        row[f"{precision} val mIoU"] = round(metrics["val/miou"], 4)
    return row


def step(bench: Bench, name: str) -> Row:
    """Loss and gradient of one batch, from the same weights, without dropout."""
    batch = Noise(bench.size, 2, 1).make(0)
    exact, gradient = derived(bench, name, batch, "fp32")
    row: Row = {"fp32 loss": exact}
    for precision in ("bf16", "fp16"):
        loss, found = derived(bench, name, batch, precision)
        row[f"{precision} loss off"] = abs(loss - exact) / exact
        row[f"{precision} gradient off"] = relative(found, gradient)
        row[f"{precision} finite"] = math.isfinite(row[f"{precision} gradient off"])
    return row


def derived(
    bench: Bench, name: str, batch: dict[str, Tensor], precision: str
) -> tuple[float, list[Tensor]]:
    """Loss and gradient of a batch, on the CPU."""
    torch.backends.cudnn.allow_tf32 = False
    model = without_dropout(build(name)).to(bench.device).train()
    moved = {key: value.to(bench.device) for key, value in batch.items()}
    on, low = precision != "fp32", PRECISIONS[precision]
    with torch.autocast(bench.device, dtype=low, enabled=on):
        terms = noise_task().training_step(model, moved)
    loss = torch.stack([term.float() for term in terms.values()]).sum()
    scale = SCALE if precision == "fp16" else 1.0
    (scale * loss).backward()
    torch.backends.cudnn.allow_tf32 = True
    gradients = [p.grad.cpu() / scale for p in model.parameters() if p.grad is not None]
    return float(loss.detach()), gradients
