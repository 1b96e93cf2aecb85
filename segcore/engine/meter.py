"""Means of the training losses over an epoch, without a wait for the device at each step."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segcore.engine.distributed import gather
from segcore.errors import SegcoreError


class NonFiniteLossError(SegcoreError, ArithmeticError):
    """A loss became NaN or infinite."""


class TrainMeter:
    """Sums of loss terms on the device, with the batches, images and seconds that they took.

    Terms are named "<term>", or "<step>/<term>" in a task of several steps.

    Args:
        device: where the loss terms are.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        self.reset()

    def reset(self) -> None:
        """Forget everything: an epoch begins."""
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}
        self.batches: float = 0
        self.images = 0
        self.seconds = 0.0

    def begin_batch(self, images: int) -> None:
        """A batch of so many images begins."""
        self.batches += 1
        self.images += images

    def add(self, name: str, value: Tensor) -> None:
        """Add one value of a loss; does not wait for it."""
        value = value.detach().to(self.dtype)
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts[name] = self.counts.get(name, 0) + 1

    def check(self, *, step: int, lr: float) -> None:
        """Wait for the device and refuse sums that are not finite. A collective call.

        Args:
            step: steps done, for the message.
            lr: learning rate, for the message.

        Raises:
            NonFiniteLossError: on every rank, naming the terms.
        """
        bad = [name for name, value in self.sums.items() if not math.isfinite(float(value))]
        names = sorted({name for names in gather(bad) for name in names})
        if names:
            raise NonFiniteLossError(
                f"loss {', '.join(names)} is not finite by step {step} (learning rate {lr:.3g}): "
                "lower lr, lengthen warmup_fraction, set clip_norm, or use precision bf16 or fp32 "
                "in place of fp16; a checkpoint of an earlier step is not affected"
            )

    def metrics(self) -> dict[str, float]:
        """The mean loss of a batch, of each term where it occurs, images/s. A collective call."""
        states = gather(self.state())
        total = merged(states)
        figures = {
            f"train/loss/{name}": value / count for name, (value, count) in total["losses"].items()
        }
        whole = sum(value for value, _ in total["losses"].values())
        figures["train/loss"] = whole / total["batches"]
        seconds = max(state["seconds"] for state in states)
        figures["images_per_s"] = total["images"] / seconds if seconds > 0 else math.nan
        return figures

    def state(self) -> dict[str, Any]:
        """Plain numbers; waits for the device."""
        losses = {name: [float(value), self.counts[name]] for name, value in self.sums.items()}
        return {
            "losses": losses,
            "batches": self.batches,
            "images": self.images,
            "seconds": self.seconds,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.reset()
        for name, (value, count) in state["losses"].items():
            self.sums[name] = torch.tensor(value, dtype=self.dtype, device=self.device)
            self.counts[name] = count
        self.batches, self.images = state["batches"], state["images"]
        self.seconds = state["seconds"]


def merged(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The meters of several ranks as one."""
    losses: dict[str, list[Any]] = {}
    for state in states:
        for name, (value, count) in state["losses"].items():
            held = losses.setdefault(name, [0.0, 0])
            held[0] += value
            held[1] += count
    return {
        "losses": losses,
        "batches": sum(state["batches"] for state in states),
        "images": sum(state["images"] for state in states),
        "seconds": max(state["seconds"] for state in states),
    }


def shared(state: dict[str, Any], before: int, now: int) -> dict[str, Any]:
    """Figures of a whole group as the share of a group of another size.

    A batch counts once on each rank; so that those of before weigh as much as those to come, they
    count as if they had been done by as many ranks as there are now.

    Args:
        state: `merged` of all ranks.
        before: ranks that it comes from.
        now: ranks that go on, one of which takes it.
    """
    factor = now / before
    return {
        **state,
        "losses": {name: [v * factor, n * factor] for name, (v, n) in state["losses"].items()},
        "batches": state["batches"] * factor,
    }
