"""The peer of own_data.py: a careful script. U-Net-ResNet18 of segmentation_models_pytorch.

256 px crops, CE + Dice, AdamW 1e-3, cosine, by the clock. `--bf16` adds autocast and channels_last.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from PIL import Image

CROP, BATCH, LR = 256, 8, 1e-3
parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("--minutes", type=float, default=8.0)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--cpu-clock", action="store_true", help="count processor time; one thread")
arguments = parser.parse_args()
root, rng = arguments.folder, np.random.default_rng(arguments.seed)
torch.manual_seed(arguments.seed)
names = (root / "classes.txt").read_text().split("\n")[:-1]
classes = len(names)
mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def load(split):
    for stem in (root / f"{split}.txt").read_text().split():
        image = np.asarray(Image.open(root / "images" / f"{stem}.png").convert("RGB"))
        yield image, np.asarray(Image.open(root / "masks" / f"{stem}.png"))


def sample():
    image, mask = train[rng.integers(len(train))]
    pad = [(0, max(0, CROP - side)) for side in mask.shape]
    image = np.pad(image, (*pad, (0, 0)), mode="reflect")
    mask = np.pad(mask, pad, constant_values=255)
    y, x = (rng.integers(side - CROP + 1) for side in mask.shape)
    image, mask = image[y : y + CROP, x : x + CROP], mask[y : y + CROP, x : x + CROP]
    if rng.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    return torch.from_numpy(image.copy()).permute(2, 0, 1), torch.from_numpy(mask.astype(np.int64))


train, test = [*load("train"), *load("val")], list(load("test"))
model = smp.Unet("resnet18", encoder_weights=None, classes=classes)
if arguments.bf16:
    model = model.to(memory_format=torch.channels_last)
dice = smp.losses.DiceLoss("multiclass", ignore_index=255)
optimizer = torch.optim.AdamW(model.parameters(), LR)
clock = time.process_time if arguments.cpu_clock else time.time
start, steps = clock(), 0
while (progress := (clock() - start) / 60 / arguments.minutes) < 1:
    for group in optimizer.param_groups:
        group["lr"] = LR * 0.5 * (1 + np.cos(np.pi * progress))
    images, masks = zip(*(sample() for _ in range(BATCH)), strict=True)
    x, y = (torch.stack(images).float() / 255 - mean) / std, torch.stack(masks)
    with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
        logits = model(x)
    loss = F.cross_entropy(logits.float(), y, ignore_index=255) + dice(logits.float(), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    steps += 1
model.eval()
matrix = np.zeros((classes, classes), np.int64)
with torch.no_grad():
    for image, mask in test:
        x = (torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255 - mean) / std
        height, width = mask.shape
        x = F.pad(x, (0, -width % 32, 0, -height % 32), mode="replicate")
        predicted = model(x)[0, :, :height, :width].argmax(0).numpy()
        valid = mask < classes
        pairs = mask[valid].astype(int) * classes + predicted[valid]
        matrix += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
iou = np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))
figures = {"miou": float(np.nanmean(iou)), "iou": dict(zip(names, map(float, iou), strict=True))}
print(json.dumps({**figures, "steps": steps}))
