"""Updating a confusion matrix: ours, numpy's bincount formula and torchmetrics, side by side.

Run: python benchmarks/metrics.py
Every round times each method once, in turn, on the same arrays and one thread, so that a load from
elsewhere hits all alike; ratios are taken within a round. Writes benchmarks/results/metrics.json
and metrics.md.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from segcore.metrics import ConfusionMatrix

SIZE = (8, 360, 480)
CLASSES = 12
IGNORE_INDEX = 255
ROUNDS = 40
RESULTS = Path(__file__).parent / "results"


def batch() -> tuple[Tensor, Tensor]:
    """Blocks of one class with a fifth of the predictions wrong and a twentieth ignored."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, CLASSES, (SIZE[0], 12, 16), generator=generator)
    truth = blocks.repeat_interleave(30, 1).repeat_interleave(30, 2)
    guess = torch.randint(0, CLASSES, SIZE, generator=generator)
    prediction = torch.where(torch.rand(SIZE, generator=generator) < 0.8, truth, guess)
    target = truth.masked_fill(torch.rand(SIZE, generator=generator) < 0.05, IGNORE_INDEX)
    return prediction, target


def numpy_formula(prediction: Tensor, target: Tensor) -> np.ndarray:
    """The usual formula: drop the ignored pixels, count K * target + prediction."""
    guess, truth = prediction.numpy(), target.numpy()
    kept = truth != IGNORE_INDEX
    counts = np.bincount(CLASSES * truth[kept] + guess[kept], minlength=CLASSES**2)
    return counts.reshape(CLASSES, CLASSES)


def torchvision_formula(prediction: Tensor, target: Tensor) -> Tensor:
    """That of torchvision's segmentation reference."""
    kept = (target >= 0) & (target < CLASSES)
    index = CLASSES * target[kept].to(torch.int64) + prediction[kept]
    return torch.bincount(index, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def methods(prediction: Tensor, target: Tensor) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; each adds the same batch once."""
    from torchmetrics.classification import MulticlassConfusionMatrix

    ours = ConfusionMatrix(CLASSES, IGNORE_INDEX)
    theirs = MulticlassConfusionMatrix(CLASSES, ignore_index=IGNORE_INDEX)
    small = target.to(torch.uint8)
    return {
        "segcore": lambda: ours.update(prediction, target),
        "segcore, uint8 target": lambda: ours.update(prediction, small),
        "numpy bincount": lambda: numpy_formula(prediction, target),
        "torchvision reference": lambda: torchvision_formula(prediction, target),
        "torchmetrics": lambda: theirs.update(prediction, target),
    }


def measure(timed: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Milliseconds of every method in every round."""
    for method in timed.values():
        method()
    spent: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(ROUNDS):
        for name, method in timed.items():
            started = time.perf_counter()
            method()
            spent[name].append(1e3 * (time.perf_counter() - started))
    return spent


def main() -> None:
    torch.set_num_threads(1)
    prediction, target = batch()
    metric = ConfusionMatrix(CLASSES, IGNORE_INDEX)
    metric.update(prediction, target)
    if not np.array_equal(metric.matrix.numpy(), numpy_formula(prediction, target)):
        raise SystemExit("the methods disagree: nothing was timed")
    spent = measure(methods(prediction, target))
    reference = spent["numpy bincount"]
    rows = {
        name: {
            "median_ms": statistics.median(values),
            "least_ms": min(values),
            "ratio_to_numpy": statistics.median(
                value / other for value, other in zip(values, reference, strict=True)
            ),
        }
        for name, values in spent.items()
    }
    facts = {
        "size": SIZE,
        "classes": CLASSES,
        "rounds": ROUNDS,
        "threads": 1,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "methods": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "metrics.json").write_text(json.dumps(facts, indent=2) + "\n")
    lines = [
        "# Confusion matrix update",
        "",
        f"One batch of {SIZE} int64, {CLASSES} classes, 5 % ignored; one CPU thread; "
        f"{ROUNDS} paired rounds; torch {torch.__version__}, numpy {np.__version__}.",
        "",
        "| method | median ms | least ms | median ratio to numpy |",
        "|---|---|---|---|",
        *[
            f"| {name} | {row['median_ms']:.2f} | {row['least_ms']:.2f} "
            f"| {row['ratio_to_numpy']:.2f} |"
            for name, row in rows.items()
        ],
        "",
    ]
    (RESULTS / "metrics.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
