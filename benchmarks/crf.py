"""Seconds of the dense CRF at 360 x 480, and what its lattice costs against the exact sums.

Rendered streets; the class scores are those of a network of output stride 8: the true map averaged
over 8 x 8 blocks and enlarged bilinearly. `python benchmarks/crf.py` writes
benchmarks/results/crf.json.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from segcore.datasets.streets.compose import compose
from segcore.datasets.streets.render import render
from segcore.inference.crf import DenseCRF

RESULTS = Path(__file__).resolve().parent / "results"
STRIDE = 8
LABELS = 12
DOUBT = 0.3  # share of the scores that is spread over all labels


def scene(index: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image uint8 [H, W, 3], probabilities [K, H, W] and the true map [H, W]."""
    picture = render(compose(0, "test", index), height, width)
    truth = torch.from_numpy(picture.classes).long()
    coarse = F.avg_pool2d(F.one_hot(truth, LABELS).movedim(-1, 0).float(), STRIDE)
    scores = F.interpolate(coarse[None], size=truth.shape, mode="bilinear", align_corners=False)[0]
    return torch.from_numpy(picture.image), (1 - DOUBT) * scores + DOUBT / LABELS, truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=(360, 480), metavar=("H", "W"))
    parser.add_argument(
        "--exact-size", type=int, nargs=2, default=(96, 128), metavar=("H", "W"),
        help="of the images on which all pairs are summed",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    lattice, exact = DenseCRF(method="lattice"), DenseCRF(method="exact")
    seconds, before, after = [], [], []
    for index in range(given.images):
        image, probabilities, truth = scene(index, *given.size)
        start = time.perf_counter()
        refined = lattice(image, probabilities)
        seconds.append(time.perf_counter() - start)
        before.append(float((probabilities.argmax(0) == truth).double().mean()))
        after.append(float((refined.argmax(0) == truth).double().mean()))
    differ, changed = [], []
    for index in range(given.images):
        image, probabilities, _ = scene(index, *given.exact_size)
        true = exact(image, probabilities).argmax(0)
        differ.append(float((lattice(image, probabilities).argmax(0) != true).double().mean()))
        changed.append(float((probabilities.argmax(0) != true).double().mean()))
    report = {
        "size": list(given.size),
        "labels": LABELS,
        "iterations": lattice.iterations,
        "threads": given.threads,
        "machine": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "seconds_per_image": statistics.median(seconds),
        "pixel_accuracy_before": statistics.mean(before),
        "pixel_accuracy_after": statistics.mean(after),
        "exact_size": list(given.exact_size),
        "pixels_that_differ_from_exact": [min(differ), max(differ)],
        "pixels_that_the_crf_changes": [min(changed), max(changed)],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "crf.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
