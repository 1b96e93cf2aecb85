"""What a stored run must fulfil, and how it is copied."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from segcore.engine.options import FitOptions
from segcore.engine.sharding import part_of, whole
from segcore.errors import CheckpointError

VERSION = 1
_KEYS = {
    "version",
    "optimizer",
    "seed",
    "steps_per_epoch",
    "epoch",
    "offset",
    "step",
    "elapsed_s",
    "model",
    "average",
    "task",
    "ranks",
    "optimizers",
    "scaler",
}


def clone(value: Any) -> Any:
    """A nest of mappings, lists and tuples with every tensor copied to the CPU, whole.

    A collective call where a tensor is one rank's part (`segcore.engine.sharding`).
    """
    if isinstance(value, Tensor):
        return whole(value.detach()).to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: clone(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(clone(item) for item in value)
    return value


def check_resume(state: Mapping[str, Any], *, options: FitOptions, steps_per_epoch: int) -> None:
    """Refuse a state that this run cannot go on from.

    Raises:
        CheckpointError: it is no state of `fit`, or one of another run.
    """
    missing = sorted(_KEYS - set(state))
    if missing or state["version"] != VERSION:
        raise CheckpointError(
            f"resume is no state of this version of fit (missing: {', '.join(missing) or 'none'}; "
            f"version {state.get('version')!r}, expected {VERSION}): start anew"
        )
    for name, now in (
        ("optimizer", options.optimizer),
        ("seed", options.seed),
        ("steps_per_epoch", steps_per_epoch),
    ):
        if state[name] != now:
            raise CheckpointError(
                f"the state to resume has {name} {state[name]!r}, this run {now!r}: "
                "resume with the same loader and options, or start anew"
            )


def load_model(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights that must fit.

    Raises:
        CheckpointError: names or shapes differ.
    """
    try:
        now = model.state_dict()
        model.load_state_dict(
            {name: part_of(value, now.get(name, value)) for name, value in weights.items()}
        )
    except RuntimeError as error:
        raise CheckpointError(
            f"the state to resume holds another model ({error}): "
            "create the model that it was saved from, or start anew"
        ) from error
