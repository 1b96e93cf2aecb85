"""Planted label faults: how many are among the first pictures of our ranking, and of cleanlab's.

    pip install cleanlab                       # the peer; without it, ours alone
    python -m benchmarks.label_doctor          # three sets of streets, some minutes

40 faults are planted into 50 of 160 training pictures: classes of objects swapped, objects erased,
masks shifted by 8 pixels, masks exchanged. Three small U-Nets judge the third that they were not
trained on. Every ranking sees the same probabilities. A fault counts as found if its picture, or
one of the two, is among the first 60; by chance about 17 are. Rows stand in
benchmarks/results/label_doctor.json and are not run again; beside it label_doctor.md, the table.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import segcore
from benchmarks.literature.rows import spec_of
from benchmarks.planted_faults import SORTS, Planted, plant_into
from pipelines.evaluation.suspects import Suspect, rank
from segcore.data.folds import FoldedDataset, fold_rows
from segcore.data.prepare import prepare
from segcore.datasets import DataSource, create_dataset
from segcore.inference.contradictions import calibrate, judge
from segcore.tasks import get_kind

RESULTS = Path(__file__).resolve().parent / "results" / "label_doctor.json"
PICTURES, EACH, FOLDS, FIRST = 160, 10, 3, 60
SIZES = {"num_train": PICTURES, "num_val": 16, "num_test": 1, "height": 64, "width": 96}
UNET = {"base_channels": 12, "norm": "batch", "dropout": 0.0}
STEPS, BATCH = 320, 4
AUGMENT = {"hflip": 0.5, "crop": [64, 64], "scale": [0.9, 1.2], "color": 0.2}
KIND = get_kind("semantic")
OURS = "segcore"

Probabilities = NDArray[np.float32]
Labels = NDArray[np.int64]
Order = NDArray[np.integer]


def faulty_shards(folder: Path, seed: int) -> tuple[Any, list[Planted]]:
    """Streets of a seed whose training labels have faults, and these."""
    source = create_dataset("streets", DataSource(raw=folder / "raw", options=SIZES, seed=seed))
    source.download()
    shards = folder / "shards"
    prepare(source, shards, workers=1)
    faults = plant_into(shards, each=EACH, seed=seed)
    return segcore.open_shards(shards), faults


def out_of_fold(dataset: Any, seed: int) -> tuple[Probabilities, Labels]:
    """Probabilities [N, K, H, W] of each training picture by a model that has not seen it."""
    split = dataset.split("train")
    found: dict[int, Probabilities] = {}
    labels = np.stack([np.asarray(split.decode(row)[1]) for row in range(len(split))])
    for held_out in fold_rows(len(split), FOLDS, seed=seed):
        part = FoldedDataset(dataset, held_out)
        torch.manual_seed(seed)
        model = segcore.create_model("unet", **KIND.model_facts(dataset), **UNET)
        loading = {"batch_size": BATCH, "seed": seed, "augment": AUGMENT, "epoch_steps": STEPS}
        train, _ = KIND.create_loaders(part, **loading)
        task = KIND.create_task(part, loss="dice_ce")
        for _ in segcore.fit(task, model, train, epochs=1, lr=0.002, seed=seed, device="cpu"):
            pass
        predictor = KIND.create_predictor(model, spec_of("unet", dataset), device="cpu")
        for row in held_out:
            image = np.asarray(split.decode(row)[0])
            found[row] = predictor.probabilities(image).numpy().astype(np.float32)
    return np.stack([found[row] for row in range(len(split))]), labels.astype(np.int64)


def by_segcore(shares: Probabilities, labels: Labels) -> Order:
    """Pictures with a contradicted region, as `segcore doctor` ranks them."""
    judged = [
        judge(one, label, ignore_index=255) for one, label in zip(shares, labels, strict=True)
    ]
    found = [
        Suspect(row, "", 0, regions) for row, regions in enumerate(calibrate(judged)) if regions
    ]
    return np.array([suspect.row for suspect in rank(found)])


def by_cleanlab(method: str) -> Callable[[Probabilities, Labels], Order]:
    """Pictures by cleanlab's label quality score, the lowest first."""

    def ranked(shares: Probabilities, labels: Labels) -> Order:
        from cleanlab.segmentation.rank import get_label_quality_scores

        options = {"method": method, "n_jobs": 1, "verbose": False}
        images, _ = get_label_quality_scores(labels, shares, **options)
        return np.argsort(images, kind="stable")

    return ranked


RANKINGS: dict[str, Callable[[Probabilities, Labels], Order]] = {
    OURS: by_segcore,
    "cleanlab, softmin": by_cleanlab("softmin"),
    "cleanlab, pixels of its filter": by_cleanlab("num_pixel_issues"),
}


def hits(order: Sequence[int], faults: Sequence[Planted]) -> dict[str, int]:
    """Faults of each sort among the first pictures."""
    first = set(order[:FIRST])
    found = dict.fromkeys(SORTS, 0)
    for fault in faults:
        found[fault.what] += bool(first & set(fault.rows))
    return found


def measure(seed: int, rankings: Sequence[str]) -> list[dict[str, Any]]:
    """A row a ranking."""
    with tempfile.TemporaryDirectory() as folder:
        dataset, faults = faulty_shards(Path(folder), seed)
        began = time.process_time()
        shares, labels = out_of_fold(dataset, seed)
        trained = time.process_time() - began
    rows = []
    for name in rankings:
        began = time.process_time()
        order = [int(row) for row in RANKINGS[name](shares, labels)]
        seconds = round(time.process_time() - began, 1)
        found = hits(order, faults)
        rows.append(
            {"seed": seed, "ranking": name, "found": sum(found.values()), **found,
             "CPU s": seconds, "training CPU s": round(trained)}
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a ranking and set."""
    lines = [
        "# Planted label faults",
        "",
        f"Of {EACH * len(SORTS)} faults in {PICTURES} pictures of `streets`, those among the first",
        f"{FIRST} pictures; every ranking sees the same out-of-fold probabilities.",
        "`python -m benchmarks.label_doctor`.",
        "",
        f"| set | ranking | found | {' | '.join(SORTS)} | CPU s of ranking |",
        f"|---{'|---' * (len(SORTS) + 3)}|",
    ]
    order = list(RANKINGS)
    for row in sorted(rows, key=lambda row: (row["seed"], order.index(row["ranking"]))):
        sorts = " | ".join(str(row[sort]) for sort in SORTS)
        lines.append(
            f"| {row['seed']} | {row['ranking']} | **{row['found']}** | {sorts} | {row['CPU s']} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    rankings = list(RANKINGS)
    try:
        import cleanlab  # noqa: F401
    except ImportError:
        print("without cleanlab: pip install cleanlab to compare", file=sys.stderr)
        rankings = [OURS]
    rows = json.loads(given.out.read_text()) if given.out.is_file() else []
    for seed in given.seeds:
        have = {row["ranking"] for row in rows if row["seed"] == seed}
        missing = [name for name in rankings if name not in have]
        if missing:
            rows += measure(seed, missing)
            given.out.write_text(json.dumps(rows, indent=1) + "\n")
            given.out.with_suffix(".md").write_text(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
