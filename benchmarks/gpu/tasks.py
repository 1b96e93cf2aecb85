"""Every loss, the dense CRF and every kind of task on the device, beside the same on the CPU.

Values and gradients of losses agree to rounding. A system trains a few steps on `streets`; its
weights then predict on the device and on the CPU, and both are scored: objects on the border of a
threshold may fall on either side.
"""

import math
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

import segcore
from benchmarks.gpu.bench import CLASSES, Bench, Plan, Row, relative
from benchmarks.literature.rows import spec_of
from segcore.data.few_labels import hide_labels
from segcore.data.prepare import validate, write
from segcore.data.rows import decode_labelled
from segcore.datasets import DataSource, create_dataset
from segcore.inference.crf import DenseCRF
from segcore.losses import create_loss, list_losses
from segcore.tasks import get_kind, labels_for

STREETS = {"num_train": 8, "num_val": 2, "num_test": 3, "height": 64, "width": 96}
LABELLED = 0.5
STEPS = 4
FPN = {
    "backbone": "resnet18",
    "fpn_channels": 32,
    "box_hidden": 64,
    "box_batch_size_per_image": 64,
    "rpn_post_nms_top_n_train": 100,
    "rpn_post_nms_top_n_test": 50,
}
ROIS = {"backbone": "resnet18", "hidden": 64, "proposals": 30, "rois_per_image": 16}
UNET = {"base_channels": 8, "norm": "batch", "dropout": 0.0}
# (task, architecture, its options, options of fit)
SYSTEMS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "semantic": ("semantic", "unet", UNET, {}),
    "semantic, bf16": ("semantic", "unet", UNET, {"precision": "bf16", "channels_last": True}),
    "semantic, fp16": ("semantic", "linknet", {}, {"precision": "fp16"}),
    "semantic, average of weights": ("semantic", "linknet", {}, {"ema_decay": 0.9}),
    "semantic, progressive": ("semantic", "unet", UNET, {"progressive": 0.5}),
    "mean_teacher": ("semi_supervised", "unet", UNET, {}),
    "gan": (
        "semi_supervised",
        "gan",
        {"segmenter": "unet", "segmenter_options": UNET, "base_channels": 8},
        {},
    ),
    "decouplednet": (
        "semi_supervised",
        "decouplednet",
        {"backbone": "vgg11_bn", "head_kernel": 1, "fc_channels": 32, "bridge_channels": 32},
        {},
    ),
    "mask_rcnn": ("instance", "mask_rcnn", FPN, {}),
    "mask_rcnn, bf16": ("instance", "mask_rcnn", FPN, {"precision": "bf16"}),
    "watershed": ("instance", "watershed", {"base_channels": 8, "min_area": 1}, {}),
    "deepmask": (
        "instance",
        "deepmask",
        {"backbone": "resnet18", "heads": "shared", "input_size": 64, "mask_size": 28},
        {},
    ),
    "instance_fcn": ("instance", "instance_fcn", {"backbone": "resnet18", "window": 9}, {}),
    "fcis": ("instance", "fcis", {**ROIS, "grid": 3, "roi_size": 9}, {}),
    "mnc": ("instance", "mnc", {**ROIS, "mask_hidden": 32, "mask_size": 14}, {}),
    "panoptic_fpn": ("panoptic", "panoptic_fpn", FPN, {}),
}


def plan(bench: Bench) -> Plan:
    """Systems first: most of the code is theirs."""
    for name in SYSTEMS:
        yield name, lambda name=name: train(bench, name)
    for name in list_losses():
        yield f"loss {name}", lambda name=name: loss(bench, name)
    for channels in (3, 1):
        yield f"dense CRF, {channels} channels", lambda c=channels: crf(bench, c)


def train(bench: Bench, name: str) -> Row:
    """A few steps on the device, and the figures of its predictions there and on the CPU."""
    task, architecture, options, fitting = SYSTEMS[name]
    _, dataset = streets(hidden=task == "semi_supervised")
    kind = get_kind(task).of(architecture, options)
    torch.manual_seed(0)
    model = segcore.create_model(architecture, **kind.model_facts(dataset), **options)
    train, val = kind.create_loaders(
        dataset, batch_size=2, seed=0, augment={"hflip": 0.5}, epoch_steps=STEPS
    )
    *_, last = segcore.fit(
        kind.create_task(dataset), model, train, val,
        epochs=1, lr=1e-3, device=bench.device, **fitting,
    )  # fmt: skip
    row: Row = {"loss": float(last.metrics["train/loss"])}
    row["finite"] = math.isfinite(row["loss"])
    model.load_state_dict(last.weights())
    for device in dict.fromkeys((bench.device, "cpu")):
        precision = fitting.get("precision", "fp32")
        row[f"figure, {device}"] = figure(labels_for(task), model, dataset, device, precision)
    return row


@cache
def streets(*, hidden: bool) -> tuple[TemporaryDirectory[str], Any]:
    """A few small pictures and where they lie; half of the masks hidden where that is asked."""
    place = TemporaryDirectory()
    folder = Path(place.name)
    source = create_dataset("streets", DataSource(raw=folder / "raw", options=STREETS))
    source.download()
    found = validate(source, size=None, workers=1)
    write(hide_labels(found, fraction=LABELLED, seed=0) if hidden else found, folder / "shards")
    return place, segcore.open_shards(folder / "shards")


def figure(task: str, model: torch.nn.Module, dataset: Any, device: str, precision: str) -> float:
    """The headline of the test pictures."""
    kind, spec = get_kind(task), spec_of("none", dataset, task=task)
    predictor = kind.create_predictor(model, spec, device=device, precision=precision)
    split, targets, found = dataset.split("test"), kind.targets(dataset), []
    for row in range(len(split)):
        image, label = decode_labelled(split, row, targets)
        if label is not None:
            found.append(kind.record(predictor([image], 1)[0], label, dataset))
    forms = dict(kind.record_columns)
    columns = {key: pa.array([one[key] for one in found], form) for key, form in forms.items()}
    records = kind.records(pa.table(columns), dataset)
    return float(kind.figures(records, np.ones((1, len(found))))[kind.headline][0])


def loss(bench: Bench, name: str) -> Row:
    """Value and gradient by logits, on noise with some void."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, CLASSES, 48, 64, generator=generator)
    target = torch.randint(CLASSES, (2, 48, 64), generator=generator)
    target[:, :4] = 255
    here, slope = derived(name, logits, target, "cpu")
    there, other = derived(name, logits, target, bench.device)
    return {"value off": relative([there], [here]), "gradient off": relative([other], [slope])}


def derived(name: str, logits: Tensor, target: Tensor, device: str) -> tuple[Tensor, Tensor]:
    given = logits.to(device, copy=True).requires_grad_()
    value = create_loss(name, num_classes=CLASSES)(given, target.to(device))
    value.backward()
    return value.detach().cpu(), given.grad.cpu()


def crf(bench: Bench, channels: int) -> Row:
    """Probabilities after ten iterations."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (90, 120, channels), generator=generator, dtype=torch.uint8)
    shares = torch.randn(CLASSES, 90, 120, generator=generator).softmax(0)
    here = DenseCRF()(image, shares)
    there = DenseCRF()(image.to(bench.device), shares.to(bench.device)).cpu()
    return {
        "shares off": relative([there], [here]),
        "labels that differ": float((here.argmax(0) != there.argmax(0)).float().mean()),
    }
