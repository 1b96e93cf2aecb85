"""What every part shares: sizes, random batches, clocks of the device."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.literature.recipes import flat_names
from segcore.models import create_model
from segcore.tasks import get_kind

Row = dict[str, Any]
Plan = Iterator[tuple[str, Callable[[], Row]]]
"""(name of a row, what measures it), the most valuable first."""

CLASSES = 11
TINY = ("fcn_small", "unet_small")
WARM, REPEATS, LONGEST_S = 3, 20, 1.5
LITERATURE = (
    "fc_densenet56", "fc_densenet103", "segnet", "enet", "linknet", "pspnet", "unet_small",
    "fcn_small",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and how large.

    Args:
        device: "cuda", or "cpu" for a dry run.
        dry: tiny sizes: the figures say nothing but that every part runs.
        shards: the dataset.
        out: folder of the results.
        row_minutes: of training, for each row of the literature.
        compile: those trainings go through torch.compile, and steps are timed with it too.
        at_once: processes that share the device.
    """

    device: str
    dry: bool
    shards: Path
    out: Path
    row_minutes: float
    compile: bool = True
    at_once: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of made-up pictures."""
        return (64, 96) if self.dry else (360, 480)

    @property
    def batch(self) -> int:
        """Images of a training step."""
        return 2 if self.dry else 8

    @property
    def names(self) -> tuple[str, ...]:
        """Architectures of the parts that ask about every one, those of the literature first."""
        if self.dry:
            return TINY
        return (*LITERATURE, *(name for name in flat_names() if name not in LITERATURE))

    @property
    def literature(self) -> tuple[str, ...]:
        """Systems that are trained."""
        return TINY[:1] if self.dry else LITERATURE

    @property
    def backend(self) -> str:
        """Of torch.compile: a dry run has no minutes for generated code."""
        return "aot_eager" if self.dry else "inductor"

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object]) -> float:
        """Median seconds of a call after some that do not count; fewer calls where it is long."""
        for _ in range(0 if self.dry else WARM):
            call()
        self.wait()
        found: list[float] = []
        while not found or (len(found) < self.repeats and sum(found) < LONGEST_S):
            began = time.perf_counter()
            call()
            self.wait()
            found.append(time.perf_counter() - began)
        return statistics.median(found)

    @property
    def repeats(self) -> int:
        """Most calls that are timed."""
        return 1 if self.dry else REPEATS

    def peak_flops(self) -> float:
        """FLOP/s of a large product of bf16 matrices: what the matrix units give in fact."""
        side = 128 if self.dry else 8192
        left = torch.randn(side, side, device=self.device).bfloat16()
        right = torch.randn(side, side, device=self.device).bfloat16()
        return 2.0 * side**3 / self.seconds(lambda: left @ right)


class Noise:
    """Batches of noise whose classes can be learnt from its colours; nothing is void.

    Args:
        size: (height, width).
        batch: images of a step over all ranks.
        steps: of an epoch.
        rank: this process.
        world_size: number of processes, of which each takes its part of every batch.
    """

    def __init__(
        self, size: tuple[int, int], batch: int, steps: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        self.size, self.batch, self.steps = size, batch, steps
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return self.steps

    def epoch(self, number: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches from `start` on."""
        for step in range(start, self.steps):
            yield self.make(number * self.steps + step)

    def make(self, seed: int) -> dict[str, Tensor]:
        """This rank's part of a batch."""
        generator = torch.Generator().manual_seed(seed)
        shape = (self.batch, 3, *self.size)
        image = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        target = (image > 127).long().sum(1)
        each = self.batch // self.world_size
        part = slice(self.rank * each, (self.rank + 1) * each)
        return {"image": image[part], "target": target[part]}


def noise_task() -> Any:
    """Cross-entropy on `Noise`, with as many classes as CamVid has."""
    facts = {"num_classes": CLASSES, "mean": (0.5,) * 3, "std": (0.29,) * 3}
    return get_kind("semantic").create_task(None, loss="cross_entropy", **facts)


def build(name: str, **options: Any) -> nn.Module:
    """The same weights at each call."""
    torch.manual_seed(0)
    return create_model(name, num_classes=CLASSES, **options)


def without_dropout(model: nn.Module) -> nn.Module:
    """The model with nothing random in it."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model


def relative(found: list[Tensor], expected: list[Tensor]) -> float:
    """||found - expected|| / ||expected|| over all tensors together."""
    pairs = list(zip(found, expected, strict=True))
    apart = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    whole = sum(float(b.double().square().sum()) for _, b in pairs)
    return float((apart / whole) ** 0.5) if whole else 0.0
