"""A training step of every architecture, plain and compiled, and its share of the matrix peak.

bf16, channels_last, SGD. FLOPs of a step are three times those of a forward pass, 2 for each
multiply-add; the peak is what a large product of bf16 matrices reaches on the same card.
"""

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.gpu.bench import (
    Bench,
    Noise,
    Plan,
    Row,
    build,
    noise_task,
    without_dropout,
)
from segcore.summary import count_flops


def plan(bench: Bench) -> Plan:
    """A row an architecture."""
    for name in bench.names:
        yield name, lambda name=name: measure(bench, name)


def measure(bench: Bench, name: str) -> Row:
    """Milliseconds, images a second and memory; a compilation that fails is said so."""
    batch = bench.batch
    while True:
        try:
            row = {"batch": batch, **plain(bench, name, batch)}
            break
        except torch.cuda.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
            torch.cuda.empty_cache()
    try:
        row |= compiled(bench, name, batch)
    except Exception as error:
        row["not compiled"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    best = min(row["step ms"], row.get("compiled ms", row["step ms"])) / 1e3
    row["images/s"] = round(batch / best, 1)
    flops = 3 * batch * count_flops(build(name), bench.size)
    row["share of peak"] = round(flops / best / _peak(bench), 4)
    return row


def plain(bench: Bench, name: str, batch: int) -> Row:
    """Without the compiler."""
    step, _ = stepper(bench, name, batch)
    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    row: Row = {"step ms": round(1e3 * bench.seconds(step), 2)}
    if bench.device == "cuda":
        row["GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return row


def compiled(bench: Bench, name: str, batch: int) -> Row:
    """Through torch.compile: its first step, later ones, and the loss beside the plain one."""
    torch.compiler.reset()
    _, loss = stepper(bench, name, batch)
    expected = float(loss().detach())
    step, loss = stepper(bench, name, batch, backend=bench.backend)
    began = time.perf_counter()
    found = float(loss().detach())
    step()
    bench.wait()
    row: Row = {"compile s": round(time.perf_counter() - began, 1)}
    row["loss off"] = abs(found - expected) / expected
    row["compiled ms"] = round(1e3 * bench.seconds(step), 2)
    return row


def stepper(
    bench: Bench, name: str, batch: int, *, backend: str | None = None
) -> tuple[Callable[[], object], Callable[[], Tensor]]:
    """A whole training step, and its loss alone, of a fresh model."""
    layout = torch.channels_last
    model = without_dropout(build(name)).to(bench.device, memory_format=layout).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    task = noise_task()
    run: nn.Module = model if backend is None else torch.compile(model, backend=backend)
    data = Noise(bench.size, batch, 1).make(0)
    moved = {key: value.to(bench.device) for key, value in data.items()}

    def loss() -> Tensor:
        with torch.autocast(bench.device, dtype=torch.bfloat16):
            terms = task.training_step(run, moved)
        return torch.stack([term.float() for term in terms.values()]).sum()

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, loss


@cache
def _peak(bench: Bench) -> float:
    return bench.peak_flops()
