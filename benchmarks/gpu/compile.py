"""torch.compile on every architecture: a training step, its loss beside the plain one.

Seconds of compiling are of a processor that other compilations share.
"""

import time

import torch

from benchmarks.gpu.bench import Bench, Plan, Row
from benchmarks.gpu.steps import fitting, stepper


def plan(bench: Bench) -> Plan:
    """A row an architecture."""
    for name in bench.names:
        yield name, lambda name=name: measure(bench, name)


def measure(bench: Bench, name: str) -> Row:
    """The first compiled step, of the largest batch that has memory enough."""
    return fitting(bench, lambda batch: first(bench, name, batch))[1]


def first(bench: Bench, name: str, batch: int) -> Row:
    """Seconds until the compiled code has run once, forwards and backwards."""
    torch.compiler.reset()
    _, loss = stepper(bench, name, batch)
    expected = float(loss().detach())
    step, loss = stepper(bench, name, batch, backend=bench.backend)
    began = time.perf_counter()
    found = float(loss().detach())
    step()
    bench.wait()
    return {
        "first step s": round(time.perf_counter() - began, 1),
        "loss off": abs(found - expected) / expected,
    }
