"""Seconds and memory of the dense CRF at 360 x 480, and what its lattice costs in labels.

Beside pydensecrf where that is installed (`pip install pydensecrf2`), in turn on the same images.

Rendered streets; the class scores are those of a network of output stride 8: the true map averaged
over 8 x 8 blocks and enlarged bilinearly. `python benchmarks/crf.py` writes
benchmarks/results/crf.json.
"""

import argparse
import ctypes
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
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


def ours(image: Tensor, probabilities: Tensor) -> Tensor:
    """The lattice of segcore: label of each pixel."""
    return DenseCRF(method="lattice")(image, probabilities).argmax(0)


def peer(image: Tensor, probabilities: Tensor) -> Tensor:
    """The same model by pydensecrf, the authors' program."""
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_softmax

    labels, height, width = probabilities.shape
    model = DenseCRF2D(width, height, labels)
    model.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probabilities.numpy())))
    own = DenseCRF()
    model.addPairwiseGaussian(sxy=own.gaussian_sxy, compat=own.gaussian_weight)
    model.addPairwiseBilateral(
        sxy=own.bilateral_sxy,
        srgb=own.bilateral_srgb,
        rgbim=np.ascontiguousarray(image.numpy()),
        compat=own.bilateral_weight,
    )
    q = np.array(model.inference(own.iterations)).reshape(labels, height, width)
    return torch.from_numpy(q).argmax(0)


RUNS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ours": ours, "pydensecrf": peer}


def measure_peak(name: str, size: tuple[int, int], threads: int) -> float:
    """MB that one image takes in a fresh process, beyond what it held after the imports."""
    command = [sys.executable, __file__, "--peak", name, "--threads", str(threads)]
    command += ["--size", *map(str, size)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(name: str, size: tuple[int, int]) -> None:
    image, probabilities, _ = scene(0, *size)
    RUNS[name](image[:8, :8], probabilities[:, :8, :8])  # imports, thread pools
    ctypes.CDLL(None).malloc_trim(0)  # what rendering left behind would hide the same amount
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = memory_mb("VmRSS")
    RUNS[name](image, probabilities)
    print(memory_mb("VmHWM") - before)


def memory_mb(entry: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(entry))


def measure_speed(names: list[str], given: argparse.Namespace) -> dict[str, dict[str, object]]:
    """Seconds and accuracy at full size; the programs take turns at every image."""
    found: dict[str, dict[str, list[float]]] = {
        name: {"wall": [], "cpu": [], "after": []} for name in names
    }
    for index in range(-1, given.images):  # the first warms up
        image, probabilities, truth = scene(max(index, 0), *given.size)
        for name in names:
            wall, cpu = time.perf_counter(), time.process_time()
            labels = RUNS[name](image, probabilities)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if index >= 0:
                found[name]["wall"].append(wall)
                found[name]["cpu"].append(cpu)
                found[name]["after"].append(float((labels == truth).double().mean()))
    return {
        name: {
            "seconds_per_image": statistics.median(lists["wall"]),
            "least_seconds": min(lists["wall"]),
            "cpu_seconds_per_image": statistics.median(lists["cpu"]),
            "peak_mb": measure_peak(name, given.size, given.threads),
            "pixel_accuracy_after": statistics.mean(lists["after"]),
        }
        for name, lists in found.items()
    }


def measure_error(names: list[str], given: argparse.Namespace) -> dict[str, object]:
    """Pixels whose label is not that of the exact sums, on small images."""
    exact = DenseCRF(method="exact")
    differ: dict[str, list[float]] = {name: [] for name in ["input", *names]}
    for index in range(given.images):
        image, probabilities, _ = scene(index, *given.exact_size)
        true = exact(image, probabilities).argmax(0)
        differ["input"].append(float((probabilities.argmax(0) != true).double().mean()))
        for name in names:
            differ[name].append(float((RUNS[name](image, probabilities) != true).double().mean()))
    return {name: [min(shares), max(shares)] for name, shares in differ.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=(360, 480), metavar=("H", "W"))
    parser.add_argument(
        "--exact-size", type=int, nargs=2, default=(96, 128), metavar=("H", "W"),
        help="of the images on which all pairs are summed",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak", choices=RUNS, help="print the peak memory of one alone")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.peak:
        print_peak(given.peak, given.size)
        return
    names = list(RUNS)
    if importlib.util.find_spec("pydensecrf") is None:
        print("pydensecrf is not installed (pip install pydensecrf2): measured without it")
        names.remove("pydensecrf")
    before = [
        float((probabilities.argmax(0) == truth).double().mean())
        for _, probabilities, truth in (scene(index, *given.size) for index in range(given.images))
    ]
    report = {
        "size": list(given.size),
        "labels": LABELS,
        "iterations": DenseCRF().iterations,
        "threads": given.threads,
        "machine": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "pixel_accuracy_before": statistics.mean(before),
        "programs": measure_speed(names, given),
        "exact_size": list(given.exact_size),
        "pixels_that_differ_from_exact": measure_error(names, given),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "crf.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
