"""How long a training step takes here: measured once for a machine and settings, then remembered.

A plan that timed anew each time would flicker, and would import torch each time.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipelines.storage import write_atomic
from segcore.machine import Machine

FILE = "timings.json"
STEPS = 3
KEYS = (
    "model.name",
    "train.augment.crop",
    "train.batch_size",
    "train.precision",
)
Measure = Callable[[Mapping[str, Any], Mapping[str, Any]], float]


class RememberedSteps:
    """Seconds of a step by what it depends on, kept in a file.

    Args:
        folder: of the file.
        machine: whose timings these are.
        size: (height, width) of a picture, for settings without a crop.
        channels: of a picture.
        task: kind of task that is trained.
        classes: names of the classes.
        things: which of them are countable.
        measure: times a step of a model with these facts and options, on that machine.
    """

    def __init__(
        self,
        folder: Path,
        machine: Machine,
        *,
        size: tuple[int, int],
        channels: int,
        task: str,
        classes: Sequence[str],
        things: Sequence[bool],
        measure: Measure,
    ) -> None:
        self.file = folder / FILE
        self.machine = machine
        self.size = size
        self.channels = channels
        self.task = task
        self.classes = list(classes)
        self.things = list(things) or [False] * len(classes)
        self.measure = measure

    def __call__(self, settings: Mapping[str, Any]) -> float:
        """Seconds of one step, to two digits."""
        options = {
            key.removeprefix("model.options."): value
            for key, value in settings.items()
            if key.startswith("model.options.") and value is not None
        }
        what = {
            "machine": self.machine.to_json(),
            "torch": version("torch"),
            "size": list(settings["train.augment.crop"] or self.size),
            "channels": self.channels,
            "task": self.task,
            "classes": self.classes,
            "things": self.things,
            "options": options,
            **{key: settings[key] for key in KEYS},
        }
        key = json.dumps(what, sort_keys=True)
        known = self._read()
        if key not in known:
            known[key] = float(f"{self.measure(what, options):.2g}")
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.file, json.dumps(known, indent=1).encode())
        return known[key]

    def _read(self) -> dict[str, float]:
        try:
            return dict(json.loads(self.file.read_text()))
        except (OSError, ValueError):
            return {}


def measure_step(what: Mapping[str, Any], options: Mapping[str, Any]) -> float:
    """Time a few training steps on random pixels; the fastest after a warm-up.

    What else runs on the machine can only slow a step down.

    Args:
        what: model.name, train.batch_size, train.precision, size, channels, task, classes, things,
            machine.
        options: of the model.
    """
    import torch

    import segcore
    from segcore.engine.batches import to_device
    from segcore.engine.options import PRECISIONS
    from segcore.machine import keep_freed_memory
    from segcore.tasks import get_kind

    keep_freed_memory()
    device = torch.device(what["machine"]["device"])
    kind, data = get_kind(what["task"]).of(what["model.name"], options), described(what)
    task = kind.create_task(data)
    with torch.random.fork_rng():
        facts = {**kind.model_facts(data), **options}
        model = segcore.create_model(what["model.name"], **facts)
        size = (what["size"][0], what["size"][1])
        batch = kind.random_batch(data, size=size, count=what["train.batch_size"])
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    precision = PRECISIONS[what["train.precision"]]
    seconds = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        moved = to_device(batch, device, channels_last=True)
        with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            loss = torch.stack(list(task.training_step(model, moved).values())).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        float(loss.detach())  # waits for an accelerator
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def described(what: Mapping[str, Any]) -> Any:
    """A dataset of these classes, as far as a model and a task ask for one."""
    classes, channels = tuple(what["classes"]), int(what["channels"])
    return SimpleNamespace(
        name="random pixels",
        num_classes=len(classes),
        in_channels=channels,
        classes=classes,
        palette=((0, 0, 0),) * len(classes),
        things=tuple(what["things"]),
        ignore_index=255,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        pixel_counts=None,
    )
