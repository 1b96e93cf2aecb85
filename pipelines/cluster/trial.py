"""One trial of a search, in a process of its own or in a group of workers."""

import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import segcore
from pipelines.cluster import held, train
from pipelines.cluster.trial_facts import trial_params, values_of
from pipelines.mirror import Mirror
from pipelines.params import Params
from pipelines.params.tune import Objective
from pipelines.training import ending, failure
from pipelines.training.run_state import RunState
from segcore.errors import OptionError, SegcoreError

TRIALS = "trials"
LOOK_S = 0.2
END_S = 20.0


@dataclass(frozen=True)
class TrialJob:
    """What each trial is given, beside its own values.

    Args:
        worker, params, shards: as of `search`.
        run: folder of the search.
        threads: of a trial of one process; None where Ray decides.
        use_gpu: whether the workers of a group have a GPU each.
    """

    worker: train.TrainWorker
    params: Params
    shards: Path | str
    run: Mirror
    threads: int | None
    use_gpu: bool

    @property
    def goals(self) -> tuple[Objective, ...]:
        """What trials are compared by."""
        return self.params.tune.objectives


def run_trial(config: dict[str, Any], job: TrialJob) -> None:
    """Train with some values; where the trial was interrupted, from its own checkpoint on.

    An error that the user can mend is left in the trial's folder for the driver. For Ray the trial
    has then ended well: it would try again what has an error or dies.
    """
    import torch
    from ray import tune

    if job.threads:
        torch.set_num_threads(job.threads)
    folder = job.run.folder / TRIALS / tune.get_context().get_trial_id()
    goal = job.goals[0]
    storage = job.params.cluster.storage
    state = RunState(folder, metric=goal.key, mode=goal.mode, keep_best=False, storage=storage)
    failure.clear(state.mirror)
    state.mirror.remove(ending.FILE)
    try:
        params = trial_params(job.params, values_of(config))
        if params.tune.workers > 1:
            _together(params, job, state)
        elif params.tune.scheduler == "pbt":
            _in_population(params, job, state)
        else:
            _alone(params, job, state)
    except SegcoreError as error:
        failure.write(state.mirror, error)


def _alone(params: Params, job: TrialJob, state: RunState) -> None:
    """An epoch is told first and stored then, so that a trial that is stopped stores nothing."""
    with state.claim():
        for epoch in job.worker(params, job.shards, state.folder, state.resume()):
            if epoch.complete:
                _tell(epoch.metrics, epoch.number, job.goals)
            if not epoch.last:
                state.keep(epoch, epoch.state())
        state.finish()


def _in_population(params: Params, job: TrialJob, state: RunState) -> None:
    """Checkpoints are Ray's, which gives a trial those of another one."""
    from ray.tune import Checkpoint

    with state.claim():
        for epoch in job.worker(params, job.shards, state.folder, _given()):
            if not epoch.complete:
                continue
            with tempfile.TemporaryDirectory() as place:
                segcore.CheckpointStore(place).save(epoch.state(), epoch.step)
                kept = Checkpoint.from_directory(place)
                _tell(epoch.metrics, epoch.number, job.goals, checkpoint=kept)


def _given() -> dict[str, Any] | None:
    """The state in the checkpoint that Ray gives this trial: its own, or that of another one."""
    from ray import tune

    given = tune.get_checkpoint()
    if given is None:
        return None
    with given.as_directory() as place:
        store = segcore.CheckpointStore(place)
        latest = store.latest()
        return None if latest is None else store.load(latest)


def _together(params: Params, job: TrialJob, state: RunState) -> None:
    """Ray Train in a thread; its epochs are told as they come."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            train.fit_group(
                train.Job(held.Noting(job.worker, state.mirror), params, job.shards, state),
                (params.tune.workers,),
                use_gpu=job.use_gpu,
            )
        except BaseException as error:
            raised.append(error)

    group = threading.Thread(target=work, name="group", daemon=True)
    group.start()
    told = 0
    try:
        ended = False
        while not ended:
            group.join(LOOK_S)
            ended = not group.is_alive()
            events = [event for event in state.events() if event["complete"]]
            # The last is told when the group has given back its room: the search then stops us.
            sure = [event for event in events if ended or event["epoch"] < params.tune.epochs]
            for event in sure[told:]:
                told += 1
                _tell(event["metrics"], event["epoch"], job.goals)
    finally:
        # A trial that fails leaves here: its workers end at their next step. One that is stopped
        # by the search never does; `held.Rooms` ends its workers.
        state.folder.joinpath(ending.FILE).touch()
        state.mirror.push(ending.FILE)
        group.join(END_S)
    if raised:
        raise raised[0]


def _tell(
    metrics: Mapping[str, float], epoch: int, goals: tuple[Objective, ...], **options: Any
) -> None:
    """Tell Ray of an epoch; does not come back where the trial is stopped.

    Raises:
        OptionError: an objective is not measured.
    """
    from ray import tune

    for goal in goals:
        if goal.key not in metrics:
            known = sorted(key[4:] for key in metrics if key.startswith("val/"))
            raise OptionError(
                f"tune.metric {goal.metric!r} is not measured; known: {', '.join(known)}"
            )
    tune.report({**metrics, "epoch": epoch}, **options)
