"""How long a training step takes here: measured once for a machine and settings, then remembered.

A plan that timed anew each time would flicker, and would import torch each time.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
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
        classes: number of classes.
        measure: times a step of a model with these facts and options, on that machine.
    """

    def __init__(
        self,
        folder: Path,
        machine: Machine,
        *,
        size: tuple[int, int],
        channels: int,
        classes: int,
        measure: Measure,
    ) -> None:
        self.file = folder / FILE
        self.machine = machine
        self.size = size
        self.channels = channels
        self.classes = classes
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
            "classes": self.classes,
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
    """Time a few training steps on random pixels; the median after a warm-up.

    Args:
        what: model.name, train.batch_size, train.precision, size, channels, classes, machine.
        options: of the model.
    """
    import torch

    import segcore
    from segcore.engine.options import PRECISIONS

    device = torch.device(what["machine"]["device"])
    with torch.random.fork_rng():
        model = segcore.create_model(
            what["model.name"],
            num_classes=what["classes"],
            in_channels=what["channels"],
            **options,
        )
        shape = (what["train.batch_size"], what["channels"], *what["size"])
        images = torch.rand(shape, device=device).contiguous(memory_format=torch.channels_last)
    model = model.to(device).to(memory_format=torch.channels_last)
    target = torch.zeros(shape[0], *shape[2:], dtype=torch.long, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    precision = PRECISIONS[what["train.precision"]]
    seconds = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            loss = torch.nn.functional.cross_entropy(model(images)["out"], target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        float(loss.detach())  # waits for an accelerator
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
