"""Seconds of a patch classifier run window by window, beside its convolutional twin.

Both are the one network of `sliding_window` with the same weights, both classify every pixel of the
same image, and the logits are compared. `python benchmarks/sliding_window.py` writes
benchmarks/results/sliding_window.json.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from torch import Tensor

from segcore.models import create_model
from segcore.models.blocks import reflect_pad
from segcore.models.semantic.sliding_window import WINDOW, SlidingWindow

RESULTS = Path(__file__).resolve().parent / "results"


def by_windows(model: SlidingWindow, image: Tensor, batch: int) -> Tensor:
    """Logits [1, K, H, W] of every pixel, one window each."""
    height, width = image.shape[2:]
    windows = reflect_pad(image, WINDOW // 2).unfold(2, WINDOW, 1).unfold(3, WINDOW, 1)
    windows = windows.permute(0, 2, 3, 1, 4, 5).reshape(height * width, -1, WINDOW, WINDOW)
    logits = torch.cat([model.classify(part) for part in windows.split(batch)])
    return logits.T.reshape(1, -1, height, width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=64, help="windows a forward")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model = create_model("sliding_window", num_classes=2, in_channels=1).eval()
    if not isinstance(model, SlidingWindow):
        raise TypeError(f"sliding_window built a {type(model).__name__}")
    image = torch.randn(1, 1, *given.size)
    with torch.inference_mode():
        model(image)  # warm-up of both: the same kernels
        start = time.perf_counter()
        at_once = model(image)["out"]
        shared_s = time.perf_counter() - start
        start = time.perf_counter()
        one_by_one = by_windows(model, image, given.batch)
        windows_s = time.perf_counter() - start
    result = {
        "size": list(given.size),
        "threads": given.threads,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "windows_s": round(windows_s, 3),
        "convolutional_s": round(shared_s, 4),
        "ratio": round(windows_s / shared_s, 1),
        "largest_difference": float((at_once - one_by_one).abs().max()),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sliding_window.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
