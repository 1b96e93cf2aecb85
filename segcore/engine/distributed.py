"""What the loop needs of torch.distributed; every function also holds for a single process."""

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segcore.engine.sharding import is_sharded, shard

BUCKET_ELEMENTS = 8 * 2**20


class GroupLostError(RuntimeError):
    """The process group was destroyed under a run that needs it."""


def rank() -> int:
    """Index of this process; 0 where there is no process group."""
    return dist.get_rank() if _grouped() else 0


def world_size() -> int:
    """Number of processes; 1 where there is no process group."""
    return dist.get_world_size() if _grouped() else 1


def check_group(size: int) -> None:
    """Refuse what was computed if the process group has changed since it had `size` processes.

    What shuts workers down (Ray's trainer, when one of them died) destroys the group from a thread
    of its own. The functions of this module then mean this process alone: a step would be taken on
    this rank's share of the batch as if it were the whole. A group that is there now was there.

    Raises:
        GroupLostError: it has another number of processes now.
    """
    if world_size() != size:
        raise GroupLostError(
            f"the process group of {size} processes is gone ({world_size()} left): another process "
            "ended or the group was destroyed; start all of them again from the newest checkpoint"
        )


def gather(value: Any) -> list[Any]:
    """The picklable values of all processes, in rank order. A collective call."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_rank_zero(value: float, device: torch.device) -> float:
    """Rank 0's value. A collective call."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(tensor, src=0)
    return float(tensor)


def any_rank(value: bool, device: torch.device) -> bool:
    """Whether it is true on any rank. A collective call."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(int(value), device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return bool(tensor)


def default_device() -> torch.device:
    """This process's accelerator if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", torch.cuda.current_device()))
    return torch.device("cuda", local % torch.cuda.device_count())


def broadcast_tensors(tensors: Sequence[Tensor]) -> None:
    """Overwrite the tensors by rank 0's. A collective call."""
    if world_size() == 1:
        return
    for tensor in tensors:
        dist.broadcast(tensor.detach(), src=0)


def place_model(model: nn.Module, device: torch.device, *, channels_last: bool) -> nn.Module:
    """Move a model to where it trains; batch norm spans all GPUs where there are several.

    Args:
        model: moved in place; its batch norms may be replaced.
        device: where to.
        channels_last: lay out 4-D weights that way.
    """
    model = model.to(device)
    if device.type == "cuda" and world_size() > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    if channels_last:
        for parameter in model.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def cut(model: nn.Module, device: torch.device) -> None:
    """Make the weights of all ranks equal to rank 0's, and leave each its part. A collective call.

    FSDP then puts weights together and averages gradients layer by layer.
    """
    if world_size() > 1:
        broadcast_tensors([*model.parameters(), *model.buffers()])
        shard(model, device, world_size())


def distribute(model: nn.Module, device: torch.device, *, whole: bool) -> nn.Module:
    """Make the weights of all ranks equal to rank 0's. A collective call.

    On an accelerator DistributedDataParallel averages the gradients while they are computed. It
    asks that one forward pass of the whole model goes before each backward pass, and that every
    parameter has a part in it. Else, and on the CPU, where its order of additions would change
    with a resume, `average_gradients` does it afterwards: see `averages`.

    Args:
        model: on `device`.
        device: where it trains.
        whole: the task has a single step, over the whole model.
    """
    if world_size() == 1:
        return model
    if is_sharded(model):
        return model
    if whole and device.type == "cuda":
        return DistributedDataParallel(model, device_ids=[device.index])
    broadcast_tensors([*model.parameters(), *model.buffers()])
    return model


def averages(model: nn.Module) -> bool:
    """Whether the backward pass of a model, compiled or not, averages gradients by itself."""
    return isinstance(inner(model), DistributedDataParallel) or is_sharded(inner(model))


def inner(model: nn.Module) -> nn.Module:
    """The model that torch.compile was given, or the model itself."""
    original: nn.Module = getattr(model, "_orig_mod", model)
    return original


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their mean over all ranks, in flat buckets. A collective call.

    A parameter that has no gradient on some rank counts there as zero.
    """
    if world_size() == 1:
        return
    for group in _buckets(parameters):
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in group]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        flat /= world_size()
        chunks = torch.split(flat, [grad.numel() for grad in grads])
        for parameter, grad, chunk in zip(group, grads, chunks, strict=True):
            parameter.grad = grad.copy_(chunk.view(grad.shape))


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Neighbours of one dtype, up to BUCKET_ELEMENTS together."""
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        fits = buckets and size + parameter.numel() <= BUCKET_ELEMENTS
        if not fits or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.numel()
    return buckets


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()
