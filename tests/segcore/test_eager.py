"""What a run that compiles nothing leaves unimported, and that the compiler finds its guard."""

import subprocess
import sys

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from segcore.engine.eager import GUARDED, guard_again, spare_compiler

SCRIPT = """
import sys, tempfile
import numpy as np, torch, segcore
from segcore.data.transforms import Augmentation
from segcore.tasks import create_task

options = {"crop": [40, 40], "hflip": 0.5, "vflip": 0.5}
change = Augmentation.from_options(options, ignore_index=255, mean=[0.5] * 3)
image, mask = torch.zeros(3, 32, 48, dtype=torch.uint8), torch.zeros(32, 48, dtype=torch.uint8)
image, mask = change(image, mask, rng=np.random.default_rng(0))
batch = {"image": image[None], "target": mask[None].long(), "id": ["a"]}
model = segcore.create_model("unet", num_classes=2, base_channels=2)
task = create_task("semantic", loss="dice_ce", num_classes=2, mean=[0.5] * 3, std=[0.2] * 3)
for optimizer in ("adamw", "sgd", "rmsprop"):
    for epoch in segcore.fit(task, model, [batch], epochs=1, lr=0.1, optimizer=optimizer):
        epoch.state()
spec = segcore.PackageSpec(
    architecture="unet", options={"base_channels": 2}, num_classes=2, classes=("a", "b"),
    palette=((0, 0, 0), (9, 9, 9)), mean=(0.5,) * 3, std=(0.2,) * 3, input_size=(32, 48),
    things=(False, False), dataset_name="toy", dataset_digest="d", metrics={}, extra={},
)
with tempfile.TemporaryDirectory() as folder:
    segcore.load_package(segcore.save_package(folder + "/p", model, spec))
print(sorted({"torch._dynamo", "torchvision", "sympy"} & set(sys.modules)))
"""


def test_a_run_and_its_package_import_neither_compiler_nor_torchvision() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_run_that_compiles_has_the_guard_back() -> None:
    plain = [getattr(Optimizer, name).__wrapped__ for name in GUARDED]
    before = [getattr(method, "__dynamo_disable", None) for method in plain]
    spare_compiler()
    guard_again()
    assert not any(getattr(m, "__dynamo_disable", None) is m for m in plain)
    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert model.weight.grad is None
    for method, kept in zip(plain, before, strict=True):
        if kept is not None:
            method.__dynamo_disable = kept
