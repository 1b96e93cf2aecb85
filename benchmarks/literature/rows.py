"""One row: a system trained for its minutes on its recipe, and scored on the test split."""

import platform
import resource
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import segcore
from benchmarks.literature.recipes import Recipe, begins_pretrained, recipe_of
from segcore.data.rows import decode_labelled
from segcore.errors import DataError
from segcore.machine import describe_machine, keep_freed_memory
from segcore.tasks import get_kind

RESAMPLES, CONFIDENCE = 1000, 0.95
ONE_STEP = 1e-9  # minutes
MOST_WORKERS = 8
KIND = get_kind("semantic")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How every row of a table is run.

    Args:
        shards: the dataset.
        minutes: of training, each.
        cpu_clock: count processor time a thread, not the wall's.
        seed: of weights, order and augmentation.
        max_batch: published batches above it are cut to it.
        device: "cpu" or "cuda".
        precision: of `segcore.fit` and of the predictor.
        channels_last: memory layout.
        compile: train through torch.compile, which takes its time before the minutes begin.
        at_once: trainings that share the device: their images a second are not of a whole one.
        pretrained: begin from ImageNet weights where the publication does, and the model can.
    """

    shards: Path
    minutes: float
    cpu_clock: bool = False
    seed: int = 0
    max_batch: int = 4
    device: str = "cpu"
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    at_once: int = 1
    pretrained: bool = False


def about(name: str, setting: Setting, dataset: Any) -> dict[str, Any]:
    """What a row is of; a row with the same is the same row."""
    height, width = dataset.split("test").sizes[0]
    return {
        "system": name,
        "recipe": recipe_of(name).digest(),
        "dataset": dataset.name,
        "shards": dataset.digest[:12],
        "height": height,
        "width": width,
        "minutes": setting.minutes,
        "clock": "cpu" if setting.cpu_clock else "wall",
        "seed": setting.seed,
        "max_batch": setting.max_batch,
        "device": setting.device,
        "precision": setting.precision,
        "channels_last": setting.channels_last,
        "compile": setting.compile,
        "at_once": setting.at_once,
        "pretrained": begins_pretrained(name, setting.pretrained),
    }


def measure(name: str, setting: Setting) -> dict[str, Any]:
    """Train and score one system, in this process.

    Raises:
        SegcoreError: it did not train: a loss that is not finite, say.
    """
    dataset = segcore.open_shards(setting.shards)
    keep_freed_memory()
    began = time.perf_counter()
    model, trained = train(name, setting, dataset)
    return {
        **about(name, setting, dataset),
        **trained,
        **score(model, name, setting, dataset),
        "wall_s": round(time.perf_counter() - began),
        "peak_gib": round(_peak_gib(setting.device), 2),
        "hardware": _hardware(setting.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "when": time.strftime("%Y-%m-%d"),
    }


def train(name: str, setting: Setting, dataset: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The model at the end of its minutes, with steps done and images a second."""
    recipe = recipe_of(name)
    pretrained = begins_pretrained(name, setting.pretrained)
    torch.manual_seed(setting.seed)
    model = segcore.create_model(name, **KIND.model_facts(dataset), pretrained=pretrained)
    batch = min(recipe.batch, setting.max_batch, len(dataset.split("train")))
    loader, _ = KIND.create_loaders(
        dataset,
        batch_size=batch,
        seed=setting.seed,
        augment=recipe.augmentation(dataset.split("train").sizes[0]),
        workers=workers(setting),
    )
    options = _fit_options(recipe, setting, pretrained)
    figures: dict[str, Any] = {}
    if setting.compile:
        figures["compile_s"] = compile_first(model, _task(recipe, dataset), loader, options)
    with _clock(setting.cpu_clock):
        options |= {"max_minutes": setting.minutes}  # they end it, not the epoch
        for epoch in segcore.fit(_task(recipe, dataset), model, loader, epochs=1, **options):
            last = epoch
    figures |= {
        "steps": last.step,
        "batch": batch,
        "images_per_s": round(last.metrics["images_per_s"], 2),
        "loss": round(last.metrics["train/loss"], 4),
    }
    return model, figures


def workers(setting: Setting) -> int:
    """Processes that decode: a GPU's host has processors to spare, a CPU that trains none."""
    if setting.device != "cuda":
        return 0
    return min(MOST_WORKERS, (describe_machine().cores - 1) // setting.at_once)


def compile_first(
    model: torch.nn.Module, task: Any, loader: Any, options: Mapping[str, Any]
) -> float:
    """Seconds of a step that compiles, of which nothing stays but the compiled code."""
    began, weights = time.perf_counter(), deepcopy(model.state_dict())
    for _ in segcore.fit(task, model, loader, epochs=1, max_minutes=ONE_STEP, **options):
        pass
    model.load_state_dict(weights)
    return round(time.perf_counter() - began, 1)


def score(model: torch.nn.Module, name: str, setting: Setting, dataset: Any) -> dict[str, Any]:
    """Figures of the labelled test images in percent, the interval of mIoU among them."""
    split, targets = dataset.split("test"), KIND.targets(dataset)
    spec = spec_of(name, dataset)
    predictor = KIND.create_predictor(
        model, spec, device=setting.device, precision=setting.precision
    )
    found = []
    for row in range(len(split)):
        image, label = decode_labelled(split, row, targets)
        if label is not None:
            prediction = predictor([image], 1)[0]
            found.append(KIND.record(prediction, label, dataset))
    if not found:
        raise DataError(f"the test split of {dataset.name} has no label: nothing to score")
    columns = {key: pa.array([one[key] for one in found], form) for key, form in _COLUMNS.items()}
    records = KIND.records(pa.table(columns), dataset)
    whole = KIND.figures(records, np.ones((1, len(found))))
    low, high = interval(records, len(found), seed=setting.seed)
    return {
        "images": len(found),
        "miou": percent(whole["miou"][0]),
        "low": percent(low),
        "high": percent(high),
        "pixel_accuracy": percent(whole["pixel_accuracy"][0]),
        "class_accuracy": percent(whole["mean_accuracy"][0]),
    }


def interval(records: Any, images: int, *, seed: int) -> tuple[float, float]:
    """Percentile bootstrap of mIoU over the images.

    Reference: Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 13.
    """
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(images, np.full(images, 1.0 / images), size=RESAMPLES)
    resampled = KIND.figures(records, draws.astype(np.float64))["miou"]
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.nanquantile(resampled, [tail, 1.0 - tail])
    return float(low), float(high)


def percent(share: float) -> float:
    return round(100.0 * float(share), 2)


_COLUMNS = dict(KIND.record_columns)


def _task(recipe: Recipe, dataset: Any) -> Any:
    return KIND.create_task(
        dataset,
        loss=recipe.loss,
        class_weights=recipe.class_weights,
        options=dict(recipe.loss_options),
    )


def _fit_options(recipe: Recipe, setting: Setting, pretrained: bool) -> dict[str, Any]:
    return {
        "optimizer": recipe.optimizer,
        "lr": recipe.rate(pretrained),
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
        "schedule": recipe.schedule,
        "seed": setting.seed,
        "device": setting.device,
        "precision": setting.precision,
        "channels_last": setting.channels_last,
        "compile": setting.compile,
    }


def spec_of(name: str, dataset: Any, *, task: str = "semantic") -> segcore.PackageSpec:
    """What a predictor asks beside the weights."""
    return segcore.PackageSpec(
        architecture=name,
        task=task,
        things=dataset.info.things,
        num_classes=dataset.num_classes,
        in_channels=dataset.in_channels,
        classes=dataset.classes,
        palette=dataset.palette,
        ignore_index=dataset.ignore_index,
        mean=dataset.mean,
        std=dataset.std,
    )


def _clock(cpu: bool) -> AbstractContextManager[None]:
    if not cpu:
        return nullcontext()
    from benchmarks.objects import cpu_clock  # it imports the pipeline, which a GPU's host lacks

    return cpu_clock(True)


def _hardware(device: str) -> str:
    machine = describe_machine()
    return machine.name if machine.device == device else f"CPU, {platform.machine()}"


def _peak_gib(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
