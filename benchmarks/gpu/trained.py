"""The literature's rows of a GPU: trained on their recipes, as `benchmarks.literature` does."""

import torch

import segcore
from benchmarks.gpu import results
from benchmarks.gpu.bench import Bench, Plan, Row
from benchmarks.literature import table
from benchmarks.literature.rows import Setting, about, measure
from segcore.models import model_card

SHOWN = ("miou", "low", "high", "pixel_accuracy", "steps", "images_per_s", "peak_gib", "wall_s")
SPEED = "images_per_s_gtx_1080_ti"
MAX_BATCH = 16


def plan(bench: Bench) -> Plan:
    """A row a system; all of it stands in literature-<dataset>.json as well."""
    for name in bench.literature:
        yield f"{name}, {bench.row_minutes:g} minutes", lambda name=name: train(bench, name)


def train(bench: Bench, name: str) -> Row:
    """Train and score a system; published figures beside."""
    torch.compiler.reset()
    setting = Setting(
        shards=bench.shards,
        minutes=bench.row_minutes,
        max_batch=bench.batch if bench.dry else MAX_BATCH,
        device=bench.device,
        precision="bf16",
        channels_last=True,
        compile=bench.compile and not bench.dry,
        at_once=bench.at_once,
    )
    dataset = segcore.open_shards(bench.shards)
    wanted, found = about(name, setting, dataset), measure(name, setting)
    file = bench.out / f"literature-{dataset.name}.json"
    with results.alone(bench.out):
        rows = [old for old in table.read(file) if {key: old.get(key) for key in wanted} != wanted]
        table.write(file, [*rows, found])
    published = model_card(name).published
    row: Row = {key: found[key] for key in SHOWN}
    row |= {key: value for key, value in published.items() if key.startswith(dataset.name)}
    return row | ({SPEED: published[SPEED]} if SPEED in published else {})
