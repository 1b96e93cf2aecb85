"""fit: the one training loop, a generator of epochs that knows nothing of the task."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from segcore.engine.batches import batch_count
from segcore.engine.distributed import default_device, gather
from segcore.engine.gradients import GradientHistogram, gradient_histograms
from segcore.engine.options import FitOptions, check_resizes, check_steps
from segcore.engine.run import Run
from segcore.engine.sharding import is_sharded
from segcore.engine.state import check_resume
from segcore.errors import CheckpointError, DataError, OptionError
from segcore.tasks.base import Task


@dataclass(frozen=True)
class Epoch:
    """A report of the run: at the end of each epoch, and between if `report_steps` asks for it.

    Args:
        number: epochs done; at the end of the first it is 1.
        step: optimiser batches done since the run began.
        steps_per_epoch: optimiser batches in an epoch.
        complete: an epoch ended here (or the clock cut it short) and was validated.
        last: the run ends with this report.
        metrics: "train/loss" and its terms (means over the epoch so far), "lr", "images_per_s";
            when complete also "val/<figure>". Equal on all ranks.
    """

    number: int
    step: int
    steps_per_epoch: int
    complete: bool
    last: bool
    metrics: dict[str, float]
    _run: Run = field(repr=False, compare=False)

    def state(self) -> dict[str, Any]:
        """All that `fit(resume=...)` needs to go on from here, copied to the CPU.

        A collective call: every rank makes it, any rank may store it. It holds tensors and plain
        values only, as `torch.load(weights_only=True)` asks.

        Raises:
            CheckpointError: the run has gone on since this report.
        """
        self._check_current("state")
        return self._run.state()

    def weights(self) -> dict[str, Tensor]:
        """The weights that were validated, on the CPU: the average's if there is one.

        With `shard`, a collective call within an epoch; at its end any rank may make it.

        Raises:
            CheckpointError: the run has gone on since this report.
        """
        self._check_current("weights")
        return self._run.weights()

    def gradients(self) -> dict[str, GradientHistogram]:
        """Magnitudes of the last optimiser step's gradients, by layer.

        As the optimiser took them: averaged over batches and ranks, clipped if `clip_norm` asks
        for it. Any rank may call it by itself.

        Raises:
            CheckpointError: the run has gone on since this report.
            OptionError: each rank has a part of them (`shard`).
        """
        self._check_current("gradients")
        if is_sharded(self._run.model):
            raise OptionError("gradients are cut into parts by shard: train without one of them")
        return gradient_histograms(self._run.model)

    def _check_current(self, what: str) -> None:
        if self._run.step != self.step:
            raise CheckpointError(
                f"{what}() of step {self.step} was asked at step {self._run.step}: "
                "call it before the next report is drawn from fit"
            )


def fit(
    task: Task,
    model: nn.Module,
    train_loader: Any,
    val_loader: Any = None,
    *,
    epochs: int,
    lr: float,
    optimizer: str = "adamw",
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    schedule: str = "poly",
    warmup_fraction: float = 0.0,
    precision: str = "fp32",
    channels_last: bool = False,
    compile: bool = False,
    accumulate: int = 1,
    clip_norm: float | None = None,
    ema_decay: float | None = None,
    max_minutes: float | None = None,
    progressive: float = 0.0,
    report_steps: int | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    shard: bool = False,
    resume: Mapping[str, Any] | None = None,
    ending: Callable[[], bool] | None = None,
) -> Iterator[Epoch]:
    """Train a model; the caller decides what a report means.

    Where a torch.distributed process group exists, every rank calls this with its share of the
    batches. A run resumed from any report, on a CPU with as many ranks, ends with the weights of
    the undisturbed run, bit for bit. A resumed run that is already at its end yields nothing.

    Args:
        task: what a batch means.
        model: trained in place; moved to `device`.
        train_loader: `len()` and `epoch(number, start)`, or any sized iterable of batches.
        val_loader: likewise; None: no validation.
        epochs: passes over the training loader.
        lr: learning rate, > 0.
        optimizer: adam, adamw, rmsprop or sgd.
        weight_decay: >= 0.
        momentum: of sgd and rmsprop, in 0..1.
        schedule: constant, cosine, poly or step, over the run.
        warmup_fraction: share of the run over which the learning rate rises.
        precision: fp32, bf16 or fp16 (with scaled gradients).
        channels_last: memory layout of 4-D weights and inputs.
        compile: run training steps through torch.compile.
        accumulate: batches per optimiser step.
        clip_norm: largest norm of a step's gradients; None: not clipped.
        ema_decay: keep an average of the weights, which is validated and reported.
        max_minutes: train by the clock in place of `epochs`, schedule included; the last
            validation comes on top. Which step is last then depends on the machine.
        progressive: share of the run, from its beginning, in which the task halves the height and
            width of its batches (`Task.smaller`): more steps in the same minutes.
        report_steps: also report every so many steps.
        device: None: the accelerator if there is one.
        seed: of everything random.
        shard: FSDP2 in place of DDP: each rank keeps a part of the weights, gradients and the
            optimiser's state, and layers are put together for their own pass. What is stored is
            whole: a run may go on with or without it. The model stays in parts afterwards.
        resume: what `Epoch.state()` gave.
        ending: asked after steps; where it says yes on any rank, all report the same step, from
            which `resume` goes on, and the generator ends. All ranks give one, or none does.

    Returns:
        A generator of reports. Options are checked now, work begins with the first `next`.

    Raises:
        OptionError, UnknownNameError: an option is wrong.
        DataError: a loader is empty.
        CheckpointError: `resume` belongs to another run.
        NonFiniteLossError: in training, a loss is NaN or infinite.
        GroupLostError: in training, the process group was destroyed.
    """
    options = FitOptions(
        epochs=epochs,
        optimizer=optimizer,
        lr=lr,
        weight_decay=weight_decay,
        momentum=momentum,
        schedule=schedule,
        warmup_fraction=warmup_fraction,
        precision=precision,
        channels_last=channels_last,
        compile=compile,
        accumulate=accumulate,
        clip_norm=clip_norm,
        ema_decay=ema_decay,
        max_minutes=max_minutes,
        progressive=progressive,
        report_steps=report_steps,
        seed=seed,
        shard=shard,
    )
    place = _device(device)
    check_steps(task.steps())
    check_resizes(task, progressive)
    _check_loaders(train_loader, val_loader)
    run = Run(task, model, train_loader, val_loader, options=options, device=place, ending=ending)
    if resume is not None:
        check_resume(resume, options=options, steps_per_epoch=run.steps_per_epoch)
    return _reports(run, resume)


def _reports(run: Run, resume: Mapping[str, Any] | None) -> Iterator[Epoch]:
    run.start(resume)
    try:
        for report in run.reports():
            yield Epoch(**report, _run=run)
    finally:
        run.stop()


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        return default_device()
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(
            f"device is {str(device)!r}, which this machine cannot use: give cpu, or leave it out"
        ) from error
    if place.type == "cuda" and place.index is None:
        return default_device()  # this process's card
    return place


def _check_loaders(train_loader: Any, val_loader: Any) -> None:
    for name, loader in (("train_loader", train_loader), ("val_loader", val_loader)):
        if loader is None and name == "val_loader":
            continue
        count = batch_count(loader, name)
        least = min(gather(count)) if name == "train_loader" else sum(gather(count))
        if least == 0:
            raise DataError(
                f"{name} has no batches: its split is empty, or smaller than one batch of which "
                "the rest is dropped"
            )
