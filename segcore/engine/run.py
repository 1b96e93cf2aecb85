"""A run of the loop: position, clock, what is stored of it."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from segcore.engine import rng
from segcore.engine.batches import image_count, open_epoch, take, to_device
from segcore.engine.distributed import (
    any_rank,
    broadcast_tensors,
    check_group,
    cut,
    distribute,
    from_rank_zero,
    gather,
    place_model,
    rank,
    world_size,
)
from segcore.engine.meter import TrainMeter, merged, shared
from segcore.engine.options import FitOptions
from segcore.engine.sharding import check_shardable, is_sharded
from segcore.engine.state import VERSION, clone, load_model
from segcore.engine.update import Updater
from segcore.engine.validate import validate
from segcore.tasks.base import Batch, Task
from segcore.tasks.ema import WeightAverage

CHECK_STEPS = 50
ASK_STEPS = 10  # of several ranks on accelerators, which wait for each other to agree


class Run:
    """The moving parts of `fit`; see there for the arguments.

    `epoch` and `offset` are the position: epochs done, and optimiser batches done of the next.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        train_loader: Any,
        val_loader: Any,
        *,
        options: FitOptions,
        device: torch.device,
        ending: Callable[[], bool] | None = None,
    ) -> None:
        self.task = task
        self.model = model
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.options = options
        self.device = device
        self.ending = ending
        self.ranks = world_size()
        self.steps_per_epoch = -(-len(train_loader) // options.accumulate)
        self.epoch = self.offset = self.step = 0
        self.elapsed_s = 0.0
        self.meter = TrainMeter(device)
        self.last_progress = 0.0
        self.gathered: dict[str, Tensor] = {}  # whole weights of a sharded model, at epochs' ends

    def start(self, resume: Mapping[str, Any] | None) -> None:
        """Place the model, build what trains it, and take up a stored state."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        rng.seed_everything(self.options.seed, rank())
        layout = self.options.channels_last
        cutting = self.options.shard and self.ranks > 1
        # FSDP cuts dense weights only.
        self.model = place_model(self.model, self.device, channels_last=layout and not cutting)
        steps = self.task.steps()
        if cutting:
            check_shardable(
                steps=len(steps),
                average=self.options.ema_decay is not None,
                judged=self.task.judged(self.model) is not self.model,
                precision=self.options.precision,
            )
            cut(self.model, self.device)
        self.updater = Updater(steps, self.model, device=self.device, options=self.options)
        self.wrapped = distribute(self.model, self.device, whole=len(steps) == 1)
        decay = self.options.ema_decay
        self.average = None if decay is None else WeightAverage(self.model, decay=decay)
        if self.options.compile:
            self.wrapped = cast(nn.Module, torch.compile(self.wrapped))
        self.model.train()
        if resume is not None:
            self._load(clone(resume))
        self.began = time.monotonic() - self.elapsed_s

    def stop(self) -> None:
        """Leave the caller's model trainable as it was."""
        self.updater.release()

    def finished(self) -> bool:
        """Whether the run is at its end, by the clock or by epochs."""
        if self.options.max_minutes is not None:
            return self.elapsed_s >= 60.0 * self.options.max_minutes
        return self.epoch >= self.options.epochs

    def progress(self) -> float:
        """Done share of the run, in 0..1."""
        if self.options.max_minutes is not None:
            return min(self.elapsed_s / (60.0 * self.options.max_minutes), 1.0)
        return self.step / (self.options.epochs * self.steps_per_epoch)

    def reports(self) -> Iterator[dict[str, Any]]:
        """Train to the end; yields the fields of each `Epoch`."""
        every = self.options.report_steps
        while not self.finished():
            self.mark = time.perf_counter()
            start = self.offset * self.options.accumulate
            batches = open_epoch(self.train_loader, self.epoch, start=start, seed=self.options.seed)
            cut = False
            while self.offset < self.steps_per_epoch and not cut:
                self._advance(batches)
                cut = self.options.max_minutes is not None and self.finished()
                if not cut and self._asked():
                    yield from self._suspended(self._report())
                    return
                within = self.offset < self.steps_per_epoch and not cut
                if within and every is not None and self.step % every == 0:
                    yield from self._suspended(self._report())
            yield from self._suspended(self._complete())

    def _asked(self) -> bool:
        """Whether the caller on any rank wants the run to end here. A collective call."""
        if self.ending is None:
            return False
        waits = self.device.type != "cpu" and world_size() > 1
        if waits and self.step % ASK_STEPS:
            return False
        return any_rank(self.ending(), self.device)

    def _advance(self, batches: Iterator[Batch]) -> None:
        """One optimiser batch."""
        size = self.options.accumulate
        count = min(size, len(self.train_loader) - self.offset * size)
        group = take(batches, count)
        for batch in group:
            self.task.check(batch)
            self.meter.begin_batch(image_count(batch))
        layout = self.options.channels_last
        group = [to_device(batch, self.device, channels_last=layout) for batch in group]
        self.last_progress = progress = self.progress()
        if progress < self.options.progressive:
            group = [self.task.smaller(batch) for batch in group]
        self.task.before_step(progress)
        self.updater.run(self.wrapped, group, meter=self.meter, progress=progress)
        check_group(self.ranks)
        self.task.after_step(self.model)
        if self.average is not None:
            self.average.update(self.model, self.step)
        self.step += 1
        self.offset += 1
        if self.options.max_minutes is not None:
            self._read_clock()
        alone = self.device.type == "cpu" and world_size() == 1
        if alone or self.step % CHECK_STEPS == 0:
            self._check_losses()

    def _check_losses(self) -> None:
        lr = max(self.updater.learning_rates(self.last_progress).values())
        self.meter.check(step=self.step, lr=lr)

    def _read_clock(self) -> None:
        self.elapsed_s = from_rank_zero(time.monotonic() - self.began, self.device)

    def _report(self) -> dict[str, Any]:
        """A report within an epoch."""
        self.gathered = {}
        self._synchronise()
        if self.options.max_minutes is None:
            self._read_clock()
        return self._fields(self._train_metrics(), complete=False)

    def _complete(self) -> dict[str, Any]:
        """The report at an epoch's end; validates."""
        self._synchronise()
        metrics = self._train_metrics()
        if self.val_loader is not None:
            figures = validate(
                self.task,
                self._judged(),
                self.val_loader,
                device=self.device,
                autocast=self.updater.autocast,
                channels_last=self.options.channels_last,
            )
            metrics |= {f"val/{name}": value for name, value in figures.items()}
        if is_sharded(self.model):  # only here do all ranks take part
            self.gathered = clone(dict(self.model.state_dict()))
        number = self.epoch + 1
        if self.offset == self.steps_per_epoch:
            self.epoch, self.offset = number, 0
            self.meter.reset()
        self._read_clock()
        return self._fields(metrics, complete=True) | {"number": number, "last": self.finished()}

    def _synchronise(self) -> None:
        """Give all ranks rank 0's running statistics, and refuse losses that are not finite."""
        broadcast_tensors(list(self.model.buffers()))
        if self._judged() is not self.model:
            broadcast_tensors(list(self._judged().buffers()))
        self._check_losses()
        self.meter.seconds += time.perf_counter() - self.mark

    def _train_metrics(self) -> dict[str, float]:
        rates = self.updater.learning_rates(self.last_progress)
        metrics = self.meter.metrics() | {"lr": next(iter(rates.values()))}
        if len(rates) > 1:
            metrics |= {f"lr/{name}": rate for name, rate in rates.items()}
        return metrics

    def _fields(self, metrics: dict[str, float], *, complete: bool) -> dict[str, Any]:
        check_group(self.ranks)
        return {
            "number": self.epoch,
            "step": self.step,
            "steps_per_epoch": self.steps_per_epoch,
            "complete": complete,
            "last": False,
            "metrics": metrics,
        }

    def _suspended(self, report: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Hand a report out; what the caller draws from torch's generators changes nothing."""
        self.generators = rng.capture(self.device)
        yield report
        rng.restore(self.generators, self.device)
        self.mark = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """All that a resume needs, copied to the CPU. A collective call."""
        own = {"generators": self.generators, "meter": self.meter.state()}
        state = {
            "version": VERSION,
            "optimizer": self.options.optimizer,
            "seed": self.options.seed,
            "steps_per_epoch": self.steps_per_epoch,
            "epoch": self.epoch,
            "offset": self.offset,
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.model.state_dict(),
            "task": self.task.state_dict(),
            "ranks": gather(own),
            **self.updater.state_dict(),
        }
        check_group(self.ranks)
        return cast(dict[str, Any], clone(state))

    def weights(self) -> dict[str, Tensor]:
        """What `Epoch.weights` returns."""
        judged = self._judged()
        weights = clone(self.gathered or dict(judged.state_dict()))
        return {name: value.contiguous() for name, value in weights.items()}

    def _judged(self) -> nn.Module:
        """What is validated and reported: the average, else what the task says."""
        return self.task.judged(self.model) if self.average is None else self.average.model

    def _load(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state`; on another number of ranks, rank 0 takes all figures so far."""
        load_model(self.model, state["model"])
        if self.average is not None:
            load_model(self.average.model, state["average"] or state["model"])
        self.updater.load_state_dict(state)
        self.task.load_state_dict(state["task"])
        self.epoch, self.offset, self.step = state["epoch"], state["offset"], state["step"]
        self.elapsed_s = state["elapsed_s"]
        ranks = state["ranks"]
        if len(ranks) == world_size():
            self.meter.load_state(ranks[rank()]["meter"])
            rng.restore(ranks[rank()]["generators"], self.device)
        elif rank() == 0:
            figures = merged([part["meter"] for part in ranks])
            self.meter.load_state(shared(figures, len(ranks), world_size()))
