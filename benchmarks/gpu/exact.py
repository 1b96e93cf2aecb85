"""Exactness: one process against ranks of DDP and SyncBN, in fp32 without TF32.

Each group trains a small U-Net on the same global batches. NCCL takes one rank a card, so two
ranks of NCCL need two cards; on one they are told so, and gloo stands in for them. On a CPU batch
norm is each rank's own, so that a dry run's two ranks differ by it.
"""

import multiprocessing
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import segcore
from benchmarks.gpu.bench import Bench, Noise, Plan, Row, build, noise_task, relative

BATCH, STEPS = 4, 8
NORMS: Mapping[str, str | None] = {"no norm": None, "batch norm": "batch"}
HERE = "benchmarks.gpu.exact"


def plan(bench: Bench) -> Plan:
    """One process twice, then groups; SyncBN apart, since not every backend can gather for it."""
    groups = [(1, "gloo"), (2, "gloo")]
    if bench.device == "cuda":
        groups = [(1, "nccl"), (2, "gloo"), (2, "nccl")]
    for norm in NORMS:
        yield f"one process twice, {norm}", lambda norm=norm: compare(bench, norm)
    for world_size, backend in groups:
        for norm in NORMS:

            def measure(
                world_size: int = world_size, backend: str = backend, norm: str = norm
            ) -> Row:
                return grouped(bench, norm, world_size, backend)

            yield f"{world_size} of {backend}, {norm}", measure


def trained(bench: Bench, norm: str, rank: int, world_size: int) -> dict[str, list[Tensor]]:
    """Weights and statistics after a few steps, and the gradient of DDP in a group."""
    plain()
    loader = Noise(size(bench), BATCH, STEPS, rank=rank, world_size=world_size)
    options: dict[str, Any] = {"optimizer": "sgd", "lr": 0.05, "device": place(bench, rank)}
    for epoch in segcore.fit(noise_task(), network(norm), loader, epochs=1, **options):
        last = epoch
    weights = list(last.weights().values())
    return {"weights": weights, "gradient": gradient(bench, norm, rank, world_size)}


def gradient(bench: Bench, norm: str, rank: int, world_size: int) -> list[Tensor]:
    """Of one batch; in a group that of torch's DDP, its batch norm over all ranks on a GPU."""
    device = torch.device(place(bench, rank))
    model = network(norm).to(device)
    wrapped: nn.Module = model
    if dist.is_initialized():
        if device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        ids = [device.index] if device.type == "cuda" else None
        wrapped = DistributedDataParallel(model, device_ids=ids)
    batch = Noise(size(bench), BATCH, STEPS, rank=rank, world_size=world_size).make(99)
    moved = {key: value.to(device) for key, value in batch.items()}
    terms = noise_task().training_step(wrapped, moved)
    torch.stack(list(terms.values())).sum().backward()
    return [p.grad.cpu() for p in model.parameters() if p.grad is not None]


def grouped(bench: Bench, norm: str, world_size: int, backend: str) -> Row:
    """A group of processes against this one."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.set_forkserver_preload(["torch._dynamo", HERE])
        arguments = (world_size, backend, bench, norm, folder)
        mp.start_processes(_rank, arguments, nprocs=world_size, start_method="forkserver")
        return compare(bench, norm, torch.load(Path(folder) / "rank0.pt", weights_only=True))


def _rank(rank: int, world_size: int, backend: str, bench: Bench, norm: str, folder: str) -> None:
    if bench.device == "cuda":
        torch.cuda.set_device(place(bench, rank))
    store = f"file://{folder}/group"
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=world_size)
    found = trained(bench, norm, rank, world_size)
    if rank == 0:
        torch.save(found, f"{folder}/rank0.pt")
    dist.destroy_process_group()


def compare(bench: Bench, norm: str, found: Mapping[str, list[Tensor]] | None = None) -> Row:
    """Relative differences from this process alone; what training itself moved, as a yardstick.

    Args:
        found: of a group; None: of this process once more.
    """
    alone = trained(bench, norm, 0, 1)
    other = trained(bench, norm, 0, 1) if found is None else found
    row: Row = {f"{name} off": relative(other[name], alone[name]) for name in alone}
    pairs = zip(other["weights"], alone["weights"], strict=True)
    row["same bits"] = all(torch.equal(a, b) for a, b in pairs)
    begun = [value.detach() for value in network(norm).state_dict().values()]
    row["moved by training"] = relative(alone["weights"], begun)
    row["rounding of a gradient"] = rounding(bench, norm)
    return row


def rounding(bench: Bench, norm: str) -> float:
    """How far fp32 takes a gradient from float64's in one process: nothing can agree better."""
    batch, found = Noise(size(bench), BATCH, STEPS).make(99), []
    for dtype in (torch.float32, torch.float64):
        model = network(norm).to(place(bench, 0), dtype)
        image = (batch["image"].to(place(bench, 0), dtype) / 255 - 0.5) / 0.29
        target = batch["target"].to(image.device)
        nn.functional.cross_entropy(model(image)["out"], target).backward()
        found.append([p.grad.cpu() for p in model.parameters()])
    return relative(*found)


def network(norm: str) -> nn.Module:
    return build("unet", base_channels=8, norm=NORMS[norm], dropout=0.0)


def size(bench: Bench) -> tuple[int, int]:
    return (32, 32) if bench.dry else (128, 160)


def place(bench: Bench, rank: int) -> str:
    if bench.device != "cuda":
        return bench.device
    return f"cuda:{rank % torch.cuda.device_count()}"


def plain() -> None:
    """Full fp32, and the same bits each time."""
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
