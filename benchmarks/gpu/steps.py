"""A training step of every architecture, plain and compiled, and its share of the matrix peak.

channels_last, SGD; bf16, where no other is said. FLOPs of a step are three times those of a
forward pass, 2 for each multiply-add; the peak is what a large product of bf16 matrices reaches on
the same card.
"""

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
    batch, row = fitting(bench, lambda batch: plain(bench, name, batch))
    if bench.compile:
        row |= compiled(bench, name, batch)
    best = min(row["step ms"], row.get("compiled ms", row["step ms"])) / 1e3
    row["images/s"] = round(batch / best, 1)
    flops = 3 * batch * count_flops(build(name), bench.size)
    row["share of peak"] = round(flops / best / _peak(bench), 4)
    return row


def compiled(bench: Bench, name: str, batch: int) -> Row:
    """Through torch.compile, or why not."""
    torch.compiler.reset()
    made = stepper(bench, name, batch, backend=bench.backend)
    try:
        return {"compiled ms": milliseconds(bench, made)}
    except Exception as error:
        return {"not compiled": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def fitting(bench: Bench, call: Callable[[int], Row]) -> tuple[int, Row]:
    """The largest batch whose measurement has memory enough, with its row."""
    batch = bench.batch
    while True:
        try:
            return batch, {"batch": batch, **call(batch)}
        except torch.cuda.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
            torch.cuda.empty_cache()


def plain(bench: Bench, name: str, batch: int) -> Row:
    """Without the compiler, in bf16 and in fp32 (convolutions in TF32, as torch sets it)."""
    row: Row = {"fp32 ms": milliseconds(bench, stepper(bench, name, batch, precision="fp32"))}
    if bench.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    row["step ms"] = milliseconds(bench, stepper(bench, name, batch))
    if bench.device == "cuda":
        row["GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return row


def milliseconds(bench: Bench, made: tuple[Callable[[], object], Callable[[], Tensor]]) -> float:
    return round(1e3 * bench.seconds(made[0]), 2)


def stepper(
    bench: Bench,
    name: str,
    batch: int,
    *,
    precision: str = "bf16",
    backend: str | None = None,
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
        with torch.autocast(bench.device, dtype=torch.bfloat16, enabled=precision == "bf16"):
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
