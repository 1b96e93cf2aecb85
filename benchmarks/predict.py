"""A folder of pictures to a folder of masks: `segcore predict` beside a plain script, LinkNet.

The script is what one writes with segmentation_models_pytorch: a DataLoader with two workers, the
network, PNG files by Pillow; once more with what a careful author adds (bf16, channels last). All
run in turn on the same rendered streets. The weights are of a minute's training for ours, which is
what the labels of bf16 and fp32 are compared on, and random for the script. Where openvino is
installed, its engine runs too; the warm-up makes the exported file. `python benchmarks/predict.py`
writes benchmarks/results/predict.json.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import segcore
from pipelines.params import Params
from pipelines.prediction.run import predict
from segcore.datasets.streets.compose import compose
from segcore.datasets.streets.render import render
from segcore.datasets.streets.scene import CLASSES, PALETTE

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STRIDE = 32
SCENES = 24  # that differ
TRAIN_SCENES, BATCHES, BATCH, CROP = 24, 64, 4, (192, 256)


def save_pictures(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Rendered streets; after a few, the same ones under other names."""
    folder.mkdir()
    for index in range(count):
        file = folder / f"{index:04}.png"
        if index < SCENES:
            picture = render(compose(0, "test", index), *size).image
            Image.fromarray(picture).save(file, compress_level=1)
        else:
            shutil.copy(folder / f"{index % SCENES:04}.png", file)


def train(folder: Path, minutes: float, size: tuple[int, int]) -> Path:
    """A package of LinkNet after some minutes on crops of other streets."""
    rng = np.random.default_rng(0)
    scenes = [render(compose(0, "train", index), *size) for index in range(TRAIN_SCENES)]
    batches = []
    for _ in range(BATCHES):
        images, masks = [], []
        for index in rng.integers(len(scenes), size=BATCH):
            top, left = (int(rng.integers(s - c + 1)) for s, c in zip(size, CROP, strict=True))
            part = slice(top, top + CROP[0]), slice(left, left + CROP[1])
            images.append(torch.from_numpy(scenes[index].image[part].copy()).permute(2, 0, 1))
            masks.append(torch.from_numpy(scenes[index].classes[part].astype(np.int64)))
        batches.append({"image": torch.stack(images), "target": torch.stack(masks)})
    model = segcore.create_model("linknet", num_classes=len(CLASSES))
    task = segcore.create_task("semantic", num_classes=len(CLASSES), mean=MEAN, std=STD)
    options = {"lr": 1e-3, "max_minutes": minutes, "channels_last": True, "precision": "bf16"}
    for epoch in segcore.fit(task, model, batches, batches[:2], epochs=1, device="cpu", **options):
        print("trained", epoch.step, "steps:", dict(epoch.metrics), flush=True)
    spec = segcore.PackageSpec(
        architecture="linknet", num_classes=len(CLASSES), classes=CLASSES, palette=PALETTE,
        mean=MEAN, std=STD,
    )  # fmt: skip
    return segcore.save_package(folder, model.eval(), spec)


class Files(Dataset[tuple[Tensor, str]]):
    """The pictures of a folder as normalised tensors."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.iterdir())
        self.mean, self.std = (torch.tensor(part).view(3, 1, 1) for part in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        pixels = np.array(Image.open(self.paths[index]).convert("RGB"))
        image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        return (image - self.mean) / self.std, self.paths[index].stem


def script(pictures: Path, out: Path, *, batch_size: int, careful: bool = False) -> None:
    """The peer."""
    model = smp.Linknet("resnet18", encoder_weights=None, classes=len(CLASSES)).eval()
    if careful:
        model = model.to(memory_format=torch.channels_last)
    out.mkdir(parents=True)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=careful):
        for images, names in DataLoader(Files(pictures), batch_size=batch_size, num_workers=2):
            height, width = images.shape[-2:]
            images = F.pad(images, (0, -width % STRIDE, 0, -height % STRIDE))
            if careful:
                images = images.contiguous(memory_format=torch.channels_last)
            masks = model(images)[..., :height, :width].argmax(1).to(torch.uint8).numpy()
            for mask, name in zip(masks, names, strict=True):
                Image.fromarray(mask).save(out / f"{name}.png")


def ours(
    pictures: Path,
    out: Path,
    *,
    package: Path,
    precision: str = "auto",
    overlays: bool = False,
    engine: str = "torch",
) -> None:
    """The path of `segcore predict`, in this process."""
    params = Params.load(ROOT / "params.yaml").override({"predict.precision": precision})
    how: dict[str, Any] = {"overlays": overlays, "engine": engine}
    done = predict(params, images=str(pictures), model=str(package), out=out, **how)
    if done.exit_code:
        raise SystemExit(str(done))


def network(pictures: Path, _: Path, *, package: Path, precision: str, batch_size: int) -> None:
    """Our network without files: one batch of pictures over and over."""
    predictor = segcore.load_package(package, precision=precision)
    paths = sorted(pictures.iterdir())
    pixels = np.stack([predictor.read(path) for path in paths[:batch_size]])
    for _ in range(0, len(paths), batch_size):
        predictor.network(torch.from_numpy(pixels))


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def measure(
    ways: dict[str, Callable[[Path, Path], None]], pictures: Path, few: Path, given: Any
) -> dict[str, dict[str, float]]:
    """Pictures a second and CPU time of each way; they take turns."""
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-1, given.rounds):  # the first warms up
        for name in ways if turn % 2 == 0 else reversed(ways):
            with tempfile.TemporaryDirectory() as out:
                start, used = time.perf_counter(), cpu_seconds()
                ways[name](few if turn < 0 else pictures, Path(out) / "out")
                if turn >= 0:
                    wall[name].append((time.perf_counter() - start) / given.images)
                    cpu[name].append((cpu_seconds() - used) / given.images)
                    print(f"{name}: {wall[name][-1]:.4f} s, CPU {cpu[name][-1]:.4f} s", flush=True)
    return {
        name: {
            "images_per_second": 1 / statistics.median(wall[name]),
            "cpu_ms_per_image": 1000 * statistics.median(cpu[name]),
        }
        for name in ways
    }


def differing_labels(package: Path, pictures: Path) -> dict[str, float]:
    """Share of pixels that bf16 labels otherwise than fp32, over all and of the worst picture."""
    full, half = (segcore.load_package(package, precision=name) for name in ("fp32", "bf16"))
    shares = [
        float((full(path)[0].mask != half(path)[0].mask).mean())
        for path in sorted(pictures.iterdir())[:SCENES]
    ]
    return {"mean": statistics.mean(shares), "worst": max(shares)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, nargs=2, default=(360, 480), metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train-minutes", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as work:
        pictures, few = Path(work, "pictures"), Path(work, "few")
        save_pictures(pictures, given.images, given.size)
        save_pictures(few, 8, given.size)
        package = train(Path(work, "package"), given.train_minutes, given.size)
        ways: dict[str, Callable[[Path, Path], None]] = {
            "segcore predict": partial(ours, package=package),
            "segcore predict, fp32": partial(ours, package=package, precision="fp32"),
            "segcore predict, overlays": partial(ours, package=package, overlays=True),
            "script, batch 1": partial(script, batch_size=1),
            "script, batch 8": partial(script, batch_size=8),
            "script, batch 1, bf16": partial(script, batch_size=1, careful=True),
        }
        if find_spec("openvino"):
            ways["segcore predict, openvino"] = partial(ours, package=package, engine="openvino")
        for precision in ("fp32", "bf16"):
            for size in (1, 8):
                ways[f"network alone, {precision}, batch {size}"] = partial(
                    network, package=package, precision=precision, batch_size=size
                )
        report = {
            "images": given.images,
            "size": list(given.size),
            "threads": given.threads,
            "cores": len(os.sched_getaffinity(0)),
            "machine": f"{platform.system()} {platform.machine()}",
            "torch": torch.__version__,
            "ways": measure(ways, pictures, few, given),
            "pixels_that_differ_between_bf16_and_fp32": differing_labels(package, pictures),
        }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "predict.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
