"""torch's generators of one process: seed, capture, restore."""

from typing import Any

import torch

RANK_STRIDE = 7_919


def seed_everything(seed: int, rank: int) -> None:
    """Seed torch on every device; each rank draws its own stream (dropout differs by rank)."""
    torch.manual_seed(seed + RANK_STRIDE * rank)


def capture(device: torch.device) -> dict[str, Any]:
    """The state of the CPU's generator and, where it trains there, of the GPU's."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore(state: dict[str, Any], device: torch.device) -> None:
    """Inverse of `capture`; a state taken on another kind of device gives what it has."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
