"""Predictions a second: pictures in memory to class maps, as `Predictor` makes them."""

import time

import numpy as np
from numpy.typing import NDArray

import segcore
from benchmarks.gpu.bench import TINY, Bench, Plan, Row
from benchmarks.literature.rows import spec_of
from segcore.tasks import get_kind

NAMES = (
    "unet_small", "fcn_small", "linknet", "enet", "segnet", "pspnet", "fc_densenet103", "fcn8s",
)  # fmt: skip
BATCHES = (1, 8, 32)
PICTURES = 96


def plan(bench: Bench) -> Plan:
    """A row an architecture and precision."""
    for name in TINY[:1] if bench.dry else NAMES:
        for precision in ("bf16", "fp32"):

            def measure(name: str = name, precision: str = precision) -> Row:
                return predicting(bench, name, precision)

            yield f"{name}, {precision}", measure


def predicting(bench: Bench, name: str, precision: str) -> Row:
    """Pictures a second by images of a batch, the first batch of each left out."""
    dataset, kind = segcore.open_shards(bench.shards), get_kind("semantic")
    split = dataset.split("test")
    count = 4 if bench.dry else PICTURES
    pictures: list[NDArray[np.uint8]] = [split.decode(i % len(split))[0] for i in range(count)]
    model = segcore.create_model(name, **kind.model_facts(dataset))
    predictor = kind.create_predictor(
        model, spec_of(name, dataset), device=bench.device, precision=precision
    )
    row: Row = {}
    for batch in BATCHES[:2] if bench.dry else BATCHES:
        predictor(pictures[:batch], batch)
        began = time.perf_counter()
        predictor(pictures, batch)  # class maps in host memory: the device is done
        row[f"images/s, batch {batch}"] = round(count / (time.perf_counter() - began), 1)
    return row
