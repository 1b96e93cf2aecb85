"""Few masks of `streets`: supervised alone against each way to use the images without.

`python -m benchmarks.few_labels --steps 400 --fractions 0.1 --seeds 2` prints a row a run: the
validation mIoU of the last epoch, and CPU seconds of this process. All train for as many optimiser
batches, so those that use more images take longer for each.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

import segcore
from segcore.data.few_labels import hide_labels
from segcore.data.prepare import Validation, validate, write
from segcore.datasets import DataSource, create_dataset
from segcore.tasks import get_kind

UNET = {"base_channels": 16, "norm": "batch", "dropout": 0.0}
GAN = {"segmenter": "unet", "segmenter_options": UNET, "base_channels": 16}
DECOUPLED = {"backbone": "vgg11_bn", "head_kernel": 1, "fc_channels": 256, "bridge_channels": 256}
RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "supervised": ("semantic", "unet", UNET),
    "mean_teacher": ("semi_supervised", "unet", UNET),
    "gan": ("semi_supervised", "gan", GAN),
    "gan_weak": ("semi_supervised", "gan", {**GAN, "weak": True}),
    "decouplednet": ("semi_supervised", "decouplednet", DECOUPLED),
}
AUGMENT = {"hflip": 0.5, "crop": [64, 64], "scale": [0.8, 1.5], "color": 0.2}
BATCH, EPOCHS = 4, 4


def run(
    name: str, whole: Validation, folder: Path, *, fraction: float, seed: int, steps: int
) -> str:
    """Train one system on a share of the masks; a row of the table."""
    shards = folder / f"shards-{fraction:g}-{seed}"
    if not shards.is_dir():
        write(hide_labels(whole, fraction=fraction, seed=seed), shards, workers=1)
    dataset = segcore.open_shards(shards)
    task_name, architecture, options = RUNS[name]
    kind = get_kind(task_name).of(architecture, options)
    torch.manual_seed(seed)
    model = segcore.create_model(architecture, **kind.model_facts(dataset), **options)
    task = kind.create_task(dataset, loss="dice_ce")
    train, val = kind.create_loaders(
        dataset, batch_size=BATCH, seed=seed, epoch_steps=steps // EPOCHS, augment=AUGMENT
    )
    begin, miou = time.process_time(), 0.0
    for epoch in segcore.fit(
        task, model, train, val, epochs=EPOCHS, lr=0.002, schedule="cosine", seed=seed, device="cpu"
    ):
        miou = epoch.metrics["val/miou"]
    seconds = time.process_time() - begin
    return f"| {name} | {fraction:.0%} | {seed} | {steps} | {miou:.3f} | {seconds:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.1])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--systems", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--folder", type=Path, default=Path("outputs/few_labels"))
    arguments = parser.parse_args()
    sizes = {"num_train": 120, "num_val": 30, "num_test": 1, "height": 64, "width": 96}
    source = create_dataset("streets", DataSource(raw=arguments.folder / "raw", options=sizes))
    source.download()
    whole = validate(source, workers=1)
    print("| system | masks | seed | steps | val mIoU | CPU s |\n|---|---|---|---|---|---|")
    for fraction in arguments.fractions:
        for seed in range(arguments.seeds):
            for name in arguments.systems:
                options: dict[str, Any] = {"fraction": fraction, "seed": seed}
                row = run(name, whole, arguments.folder, steps=arguments.steps, **options)
                print(row, flush=True)


if __name__ == "__main__":
    main()
