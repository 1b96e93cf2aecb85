"""What each process of the distributed tests runs; a module, so that spawned processes find it."""

import multiprocessing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fit_toys import Boxes, BoxNet, BoxTask, Tiles, ToyNet, toy_net, toy_task
from torch.nn.parallel import DistributedDataParallel

import segcore
from segcore.engine import sharding
from segcore.engine.distributed import GroupLostError, distribute
from segcore.engine.meter import TrainMeter
from segcore.engine.options import FitOptions
from segcore.engine.update import Updater
from segcore.errors import OptionError, SegcoreError

WORLD = 2


def launch(folder: Path, world_size: int = WORLD) -> list[dict[str, Any]]:
    """Run every scenario on as many gloo ranks; what each rank saw, in rank order."""
    # torch is imported once, in the server that the ranks are forked from.
    multiprocessing.set_forkserver_preload(["torch._dynamo", "fit_ranks"])
    arguments = (world_size, str(folder))
    mp.start_processes(_rank, arguments, nprocs=world_size, start_method="forkserver")
    return [torch.load(folder / f"rank{i}.pt", weights_only=True) for i in range(world_size)]


def _rank(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/group"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    seen: dict[str, Any] = {}
    for name, start in (("tiles", start_tiles), ("noisy", start_noisy), ("boxes", start_boxes)):
        seen[name] = watch(start(rank, world_size))
        state = seen[name][1]["state"]
        seen[f"{name}, resumed"] = watch(start(rank, world_size, state))
    sharding.LEAST = 40  # so that layers of the toy travel by themselves
    seen["sharded"] = watch(start_tiles(rank, world_size, shard=True))
    seen["sharded sgd"] = watch(start_tiles(rank, world_size, shard=True, optimizer="sgd"))
    seen["whole sgd"] = watch(start_tiles(rank, world_size, optimizer="sgd"))
    state = seen["whole sgd"][1]["state"]
    seen["sharded sgd, resumed"] = watch(
        start_tiles(rank, world_size, state, shard=True, optimizer="sgd")
    )
    seen["refused"] = refused(rank, world_size)
    for name, source, shard in (
        ("whole to parts", "tiles", True),
        ("parts to whole", "sharded", False),
    ):
        seen[name] = watch(start_tiles(rank, world_size, seen[source][1]["state"], shard=shard))
    seen["averaged"], seen["ddp"] = (
        stepped(rank, world_size, ddp=False),
        stepped(rank, world_size, ddp=True),
    )
    seen["ended"] = [end["step"] for end in watch(start_tiles(rank, world_size, asks=rank == 1))]
    seen["error"] = told(rank, world_size)
    seen["lost"] = []
    for when in ("in a step", "before a state", "before a validation"):
        seen["lost"].append(lost(rank, world_size, when))
        dist.init_process_group(
            "gloo", init_method=f"{store} after {when}", rank=rank, world_size=world_size
        )
    torch.save(seen, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def watch(epochs: Any) -> list[dict[str, Any]]:
    return [
        {"metrics": e.metrics, "weights": e.weights(), "step": e.step, "state": e.state()}
        for e in epochs
    ]


def start_tiles(
    rank: int,
    world: int,
    resume: Mapping[str, Any] | None = None,
    *,
    asks: bool = False,
    **more: Any,
) -> Any:
    """Nothing random, no batch norm: comparable with one process. Weights differ by rank first."""
    torch.manual_seed(rank)
    model = ToyNet(norm=False, dropout=0.0) if rank else toy_net(norm=False, dropout=0.0)
    train, val = Tiles(5, rank, world), Tiles(2, rank, world)
    options: dict[str, Any] = {"epochs": 3, "lr": 0.02, "report_steps": 3, "device": "cpu"}
    calls = iter(range(100))
    options["ending"] = lambda: asks and next(calls) == 3
    return segcore.fit(toy_task(), model, train, val, **options, **more, resume=resume)


def start_noisy(rank: int, world: int, resume: Mapping[str, Any] | None = None) -> Any:
    """Dropout, batch norm, averaged weights, accumulation."""
    options: dict[str, Any] = {"epochs": 2, "lr": 0.02, "report_steps": 1, "ema_decay": 0.9}
    train, val = Tiles(5, rank, world), Tiles(2, rank, world)
    options |= {"accumulate": 2, "clip_norm": 1.0, "device": "cpu"}
    torch.manual_seed(rank)
    return segcore.fit(toy_task(), ToyNet(), train, val, **options, resume=resume)


def start_boxes(rank: int, world: int, resume: Mapping[str, Any] | None = None) -> Any:
    """Two optimisers that alternate, lists of dicts, a metric that gathers."""
    torch.manual_seed(rank)
    train, val = Boxes(3, rank, world), Boxes(2, rank, world)
    options: dict[str, Any] = {"epochs": 3, "lr": 0.02, "report_steps": 2, "device": "cpu"}
    return segcore.fit(BoxTask(), BoxNet(), train, val, **options, resume=resume)


def stepped(rank: int, world: int, *, ddp: bool) -> dict[str, torch.Tensor]:
    """Weights after two accumulated steps, as on an accelerator (DDP) or as on a CPU."""
    task, model = toy_task(), toy_net(norm=False, dropout=0.0)
    options = FitOptions(**(DEFAULTS | {"accumulate": 2}))
    device = torch.device("cpu")
    updater = Updater(task.steps(), model, device=device, options=options)
    wrapped = DistributedDataParallel(model) if ddp else distribute(model, device, whole=True)
    batches = list(Tiles(4, rank, world).epoch(0))
    for group in (batches[:2], batches[2:]):
        updater.run(wrapped, group, meter=TrainMeter(device), progress=0.0)
    return model.state_dict()


DEFAULTS: dict[str, Any] = {
    "epochs": 1,
    "optimizer": "sgd",
    "lr": 0.1,
    "weight_decay": 0.0,
    "momentum": 0.9,
    "schedule": "constant",
    "warmup_fraction": 0.0,
    "precision": "fp32",
    "channels_last": False,
    "compile": False,
    "clip_norm": 1.0,
    "ema_decay": None,
    "max_minutes": None,
    "report_steps": None,
    "seed": 0,
}


class OneBad(Tiles):
    """Rank 1's third batch is not a number; the others' are."""

    def epoch(self, number: int, start: int = 0) -> Any:
        for step, batch in enumerate(super().epoch(number, start), start):
            bad = self.rank == 1 and step == 2
            yield batch | {"image": batch["image"].float() * torch.nan} if bad else batch


def told(rank: int, world: int) -> str:
    """All ranks hear of one rank's fault."""
    model = toy_net(norm=False)
    train = OneBad(5, rank, world)
    try:
        list(segcore.fit(toy_task(), model, train, None, epochs=1, lr=0.1, device="cpu"))
    except SegcoreError as error:
        return str(error)
    return "nothing"


def refused(rank: int, world: int) -> list[str]:
    """What cannot be cut into parts says so before a step is taken."""
    said = []
    for more in ({"ema_decay": 0.9}, {"precision": "fp16"}):
        try:
            list(start_tiles(rank, world, shard=True, **more))
        except OptionError as error:
            said.append(str(error))
    return said


class Unjoined(Tiles):
    """The process group is gone when a batch is asked for."""

    def epoch(self, number: int, start: int = 0) -> Any:
        for step, batch in enumerate(super().epoch(number, start), start):
            if step == 1:
                dist.destroy_process_group()
            yield batch


def lost(rank: int, world: int, when: str) -> str:
    """What becomes of a run whose process group is destroyed under it, as Ray's trainer does."""
    kinds = {"in a step": (Unjoined, Tiles), "before a validation": (Tiles, Unjoined)}
    train, val = kinds.get(when, (Tiles, Tiles))
    loaders = train(2, rank, world), val(2, rank, world)
    options: dict[str, Any] = {"epochs": 1, "lr": 0.1, "report_steps": 1, "device": "cpu"}
    try:
        for epoch in segcore.fit(toy_task(), toy_net(norm=False), *loaders, **options):
            if when == "before a state":
                dist.destroy_process_group()
            epoch.state()
    except GroupLostError as error:
        return str(error)
    return f"went on to step {epoch.step}"
