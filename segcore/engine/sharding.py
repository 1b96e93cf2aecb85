"""FSDP2: each rank holds a part of every weight, of its gradient and of the optimiser's state.

For models that do not fit on one device beside all three. A layer's weights are put together for
its own pass and dropped after it. What is stored is whole, as without shards.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from segcore.errors import OptionError

LEAST = 2**16  # elements of a layer that travels by itself; smaller ones travel together


def shard(model: nn.Module, device: torch.device, size: int) -> None:
    """Cut a model into parts for all ranks, in place. A collective call.

    Args:
        model: on `device`, its weights equal on all ranks.
        device: where it trains.
        size: number of ranks.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (size,))
    for layer in list(model.modules()):
        if sum(weight.numel() for weight in layer.parameters(recurse=False)) >= LEAST:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was called on a model."""
    return hasattr(model, "set_reshard_after_forward")


def whole(value: Tensor) -> Tensor:
    """A tensor that may be one rank's part, whole. A collective call where it is a part."""
    full = getattr(value, "full_tensor", None)
    return value if full is None else cast(Tensor, full())


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, cut as `like` is; itself where `like` is no part."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    parts: Any = like
    on_device = value.to(like.device)
    # Every rank has the whole: nothing has to be sent.
    return distribute_tensor(on_device, parts.device_mesh, parts.placements, src_data_rank=None)


def parts_of_optimizer(state: Any, parameters: Sequence[nn.Parameter]) -> Any:
    """An optimiser's state dict whose tensors are cut as the parameters that they belong to."""
    cut = {
        number: {
            key: part_of(value, parameters[number])
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for key, value in entry.items()
        }
        for number, entry in state["state"].items()
    }
    groups = [dict(group) for group in state["param_groups"]]
    return {"state": cut, "param_groups": groups}


@contextmanager
def put_together(model: nn.Module) -> Iterator[None]:
    """Hold all weights whole for a block, in which ranks may call the model unequally often."""
    if not is_sharded(model):
        yield
        return
    parts: list[Any] = [module for module in model.modules() if is_sharded(module)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def check_shardable(*, steps: int, average: bool, judged: bool, precision: str) -> None:
    """Refuse what needs all weights on one rank.

    Args:
        steps: of the task.
        average: an average of the weights is kept.
        judged: the task judges another model than the one that trains.
        precision: of training.

    Raises:
        OptionError: says which.
    """
    for wrong, why in (
        (steps > 1, "a task of several steps trains parts of the model in turn"),
        (average, "ema_decay keeps a second model"),
        (judged, "this task keeps a second model"),
        (precision == "fp16", "fp16 scales gradients; take bf16 or fp32"),
    ):
        if wrong:
            raise OptionError(f"shard cuts the model into parts, and {why}: leave shard out")
