"""Pixel error and foreground-restricted Rand score of a model on held-back sections of `isbi_em`.

Train, then score (README, "Measured", has the figures):

    dvc exp run -S data.name=isbi_em -S model.name=unet ...
    python benchmarks/isbi_em.py

The border is thresholded twice: where the classes are equally likely, and where the Rand score of
the validation sections is best; the test sections choose nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import segcore
from segcore.metrics import RandScore

THRESHOLDS = [
    round(float(t), 3) for t in (*np.arange(0.2, 0.95, 0.05), 0.95, 0.97, 0.98, 0.99, 0.995)
]


def cell_probabilities(
    predictor: segcore.Predictor, split: Any, cell: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probability of the class `cell` and the truth of every section: [N, H, W] each."""
    probabilities, targets = [], []
    for index in range(len(split)):
        image, mask = split.decode(index)
        probabilities.append(predictor.logits([image]).softmax(1)[0, cell].cpu())
        targets.append(torch.from_numpy(np.array(mask)).long())
    return torch.stack(probabilities), torch.stack(targets)


def figures(probability: torch.Tensor, target: torch.Tensor, *, threshold: float) -> dict[str, Any]:
    """The scores of the map `probability > threshold`."""
    predicted = (probability > threshold).long()
    rand = RandScore(foreground=1)
    rand.update(predicted, target)
    error = float((predicted != target).double().mean())
    return {"threshold": threshold, "pixel_error": error, **rand.compute()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--package", type=Path, default=Path("outputs/candidate"))
    parser.add_argument("--shards", type=Path, default=Path("data/shards/isbi_em"))
    given = parser.parse_args()
    dataset = segcore.open_shards(given.shards)
    predictor = segcore.load_package(given.package)
    cell = dataset.classes.index("cell")
    val = cell_probabilities(predictor, dataset.split("val"), cell)
    test = cell_probabilities(predictor, dataset.split("test"), cell)
    tried = [figures(val[0], val[1] == cell, threshold=t) for t in THRESHOLDS]
    best = max(tried, key=lambda row: row["rand_score"])
    report = {
        "package": segcore.package_digest(given.package),
        "test": figures(test[0], test[1] == cell, threshold=0.5),
        "test_at_the_threshold_of_val": figures(
            test[0], test[1] == cell, threshold=best["threshold"]
        ),
        "val_at_its_threshold": best,
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
