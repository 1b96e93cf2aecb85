"""Mask R-CNN beside torchvision's: a training step and inference, in turn, with the same weights.

    python benchmarks/mask_rcnn.py [--rounds 3] [--steps 4] [--threads 2] [--anchors 32 64 ...]

Both have a ResNet-50 FPN, the same anchors, two pictures of 256 x 320 and two classes; ours takes
torchvision's state_dict. Each picture keeps the best DETECTIONS objects: of more, the roundings of
bf16 would leave unlike numbers. Every measurement is a process of its own, whose peak memory counts
from the first step on, and the two take turns. CPU time counts all threads; wall time means
something on a machine that does nothing else. Results: benchmarks/results/mask_rcnn.json and .md.
"""

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RESULTS = Path(__file__).parent / "results"
SIZE, BATCH, CLASSES, DETECTIONS = (256, 320), 2, 2, 50
ANCHORS = (32, 64, 128, 256, 512)
WHO = ("torchvision", "segcore")
# As torch has it; and as `segcore.fit` and the predictor set it: weights in channels_last.
PRECISIONS = ("fp32", "bf16", "fp32 channels_last", "bf16 channels_last")
MODES = ("train", "predict")


def build(who: str, anchors: list[int], *, size: tuple[int, int] = SIZE) -> nn.Module:
    """Both with the same weights; neither resizes pictures of `size`."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    sizes = tuple((size,) for size in anchors)
    torch.manual_seed(0)
    theirs: nn.Module = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES,
        min_size=size[0],
        max_size=size[1],
        box_detections_per_img=DETECTIONS,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
    )
    if who == "torchvision":
        return theirs
    from segcore.models import create_model
    from segcore.models.instance.mask_rcnn import TORCHVISION, from_torchvision

    options = {**TORCHVISION, "norm": "batch", "anchor_sizes": sizes}
    options |= {"min_size": size[0], "max_size": size[1], "box_detections_per_img": DETECTIONS}
    ours = create_model("mask_rcnn", num_classes=CLASSES, **options)
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    return ours


def make_batch(size: tuple[int, int] = SIZE) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Noise with twelve rectangles a picture."""
    generator = torch.Generator().manual_seed(0)
    images, targets = [], []
    for _ in range(BATCH):
        images.append(torch.rand(3, *size, generator=generator))
        corner = torch.randint(0, min(size) - 76, (12, 2), generator=generator)
        sides = torch.randint(12, 70, (12, 2), generator=generator)
        boxes = torch.cat([corner, corner + sides], 1)
        masks = torch.zeros(12, *size, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
            mask[y0:y1, x0:x1] = 1
        labels = torch.ones(12, dtype=torch.int64)
        targets.append({"boxes": boxes.float(), "labels": labels, "masks": masks})
    return images, targets


def forget_peak() -> None:
    """Give freed memory back and let the kernel count the peak anew: building is not measured."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak_gib() -> float:
    """Most memory that this process held since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def measure(who: str, mode: str, precision: str, steps: int, anchors: list[int]) -> dict[str, Any]:
    """Seconds of a step (the median after one to warm up) and peak memory of this process."""
    model, (images, targets) = build(who, anchors), make_batch()
    model.train(mode == "train")
    if "channels_last" in precision:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    cpu, wall, found = [], [], 0
    forget_peak()
    for _ in range(steps + 1):
        began = time.process_time(), time.perf_counter()
        low = torch.autocast("cpu", torch.bfloat16) if "bf16" in precision else nullcontext()
        if mode == "train":
            with low:
                loss = torch.stack([value.float() for value in model(images, targets).values()])
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
        else:
            with torch.inference_mode(), low:
                found = sum(len(one["boxes"]) for one in model(images))
        cpu.append(time.process_time() - began[0])
        wall.append(time.perf_counter() - began[1])
    return {
        "cpu_s": statistics.median(cpu[1:]),
        "wall_s": statistics.median(wall[1:]),
        "peak_gib": peak_gib(),
        "objects": found,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Medians over the rounds, and each one's CPU time over that of torchvision in fp32."""
    lines = [
        "| mode | precision | who | objects | CPU s | wall s | peak GiB "
        "| against torchvision, fp32 |"
    ]
    lines.append("|---" * 8 + "|")
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["mode"], row["precision"], row["who"]), []).append(row)

    def median(key: tuple[str, ...], name: str) -> float:
        return statistics.median(row[name] for row in groups[key])

    for key in sorted(groups, key=lambda k: (MODES.index(k[0]), PRECISIONS.index(k[1]), k[2])):
        base = (key[0], "fp32", "torchvision")
        ratio = f"{median(key, 'cpu_s') / median(base, 'cpu_s'):.2f} x" if base in groups else ""
        cells = [f"{median(key, 'objects'):.0f}"]
        cells += [f"{median(key, name):.2f}" for name in ("cpu_s", "wall_s", "peak_gib")]
        lines.append(f"| {' | '.join([*key, *cells, ratio])} |")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--anchors", type=int, nargs=5, default=list(ANCHORS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--one", nargs=3, metavar=("WHO", "MODE", "PRECISION"), help="one process")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        print(json.dumps(measure(*arguments.one, arguments.steps, arguments.anchors)))
        return
    rows: list[dict[str, Any]] = []
    given = [__file__, "--steps", arguments.steps, "--threads", arguments.threads, "--anchors"]
    command = [sys.executable, *map(str, [*given, *arguments.anchors]), "--one"]
    for number in range(arguments.rounds):
        for mode in arguments.modes:
            for precision in arguments.precisions:
                for who in WHO if number % 2 == 0 else WHO[::-1]:
                    run = [*command, who, mode, precision]
                    done = subprocess.run(run, capture_output=True, text=True)
                    if done.returncode:  # an operator without bf16, say
                        print(who, mode, precision, done.stderr.splitlines()[-1], flush=True)
                        continue
                    row = {"who": who, "mode": mode, "precision": precision, "round": number}
                    row |= {"threads": arguments.threads, "anchors": arguments.anchors}
                    rows.append(row | json.loads(done.stdout.splitlines()[-1]))
                    print(rows[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "mask_rcnn.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "mask_rcnn.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
