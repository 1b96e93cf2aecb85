"""Real Ray workers: a killed one changes nothing, two see what one sees, none outlives the run."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import segcore
from pipelines import train
from pipelines.cluster import session
from pipelines.cluster import train as ray_train
from pipelines.errors import ClusterError
from pipelines.params import Params
from pipelines.training.build import build_model, check
from pipelines.training.run_state import Best, RunState
from segcore.errors import DataError, OptionError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
# Batch statistics and dropout masks are a worker's own: without them two workers are one.
EXACT = {"model.options": {"base_channels": 4, "dropout": 0.0}, "train.optimizer": "sgd"}
METRICS = ("train/loss", "val/loss", "val/miou")


def fit(params: Params, shards: Path, folder: Path) -> tuple[Best, list[dict[str, float]]]:
    state = RunState(folder, metric="val/miou", mode="max")
    best = ray_train.run(train.train_worker, params, shards, state=state)
    return best, [event["metrics"] for event in state.events() if event["complete"]]


def workers() -> list[psutil.Process]:
    """Ray's training workers below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            name = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "RayTrainWorker" in name:
            found.append(process)
    return found


def kill_one_when(ready: Callable[[], bool]) -> list[int]:
    """Kill the last worker as soon as `ready`; its id is put in the list."""
    killed: list[int] = []

    def watch() -> None:
        while not ready():
            time.sleep(0.02)
        victim = workers()[-1]
        victim.kill()
        killed.append(victim.pid)

    threading.Thread(target=watch, daemon=True).start()
    return killed


def test_a_killed_worker_changes_nothing_and_two_workers_see_what_one_sees(
    workspace, tmp_path: Path
) -> None:
    two = workspace.write(**{"cluster.num_workers": 2, "train.epochs": 6, **EXACT})
    undisturbed, curve = fit(two, workspace.shards, tmp_path / "undisturbed")

    folder = tmp_path / "killed"
    state = RunState(folder, metric="val/miou", mode="max")
    killed = kill_one_when(lambda: any(not e["complete"] for e in state.events()[2:]))
    recovered, again = fit(two, workspace.shards, folder)
    assert killed
    assert same(recovered.weights, undisturbed.weights)
    assert [m["val/miou"] for m in again] == [m["val/miou"] for m in curve]
    assert same(final(folder), final(tmp_path / "undisturbed"))

    one = two.override({"cluster.num_workers": "auto"})
    _, alone = fit(one, workspace.shards, tmp_path / "one")
    for metrics, expected in zip(curve, alone, strict=True):
        for key in METRICS:
            assert metrics[key] == pytest.approx(expected[key], rel=2e-3, abs=2e-3), key
    assert not workers()


def test_a_worker_whose_group_is_gone_takes_no_step_alone(workspace, tmp_path: Path) -> None:
    """Ray destroys the process group of a survivor while it trains, then stops the process."""
    two = workspace.write(**{"cluster.num_workers": 2, "train.epochs": 3, **EXACT})
    undisturbed, _ = fit(two, workspace.shards, tmp_path / "undisturbed")

    def worker(params: Params, shards: Path, folder: Path, resume: Any) -> Iterator[Any]:
        import torch.distributed as dist

        for epoch in train.train_worker(params, shards, folder, resume):
            yield epoch
            if resume is None and epoch.step == 6:
                if dist.get_rank() == 1:
                    time.sleep(3)
                    os._exit(1)
                dist.destroy_process_group()
                (folder / "gone").touch()

    state = RunState(tmp_path / "killed", metric="val/miou", mode="max")
    recovered = ray_train.run(worker, two, workspace.shards, state=state)
    assert (tmp_path / "killed" / "gone").exists()
    assert same(recovered.weights, undisturbed.weights)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


def final(folder: Path) -> dict[str, torch.Tensor]:
    """Model weights of the newest checkpoint."""
    state = RunState(folder, metric="val/miou", mode="max").resume()
    assert state is not None
    return dict(state["model"])


def test_workers_that_hold_parts_of_the_model_train_the_same_one(workspace, tmp_path: Path) -> None:
    values = {"cluster.num_workers": 2, "train.epochs": 2, **EXACT}
    whole = workspace.write(**values)
    _, curve = fit(whole, workspace.shards, tmp_path / "whole")
    parts = whole.override({"cluster.shard": True, "cluster.backend": "gloo"})
    best, again = fit(parts, workspace.shards, tmp_path / "parts")
    for metrics, expected in zip(again, curve, strict=True):
        for key in METRICS:
            assert metrics[key] == pytest.approx(expected[key], rel=2e-3, abs=2e-3), key
    first, second = final(tmp_path / "parts"), final(tmp_path / "whole")
    for key, value in first.items():
        assert torch.allclose(value, second[key], atol=1e-5), key
    model = build_model(whole, segcore.open_shards(workspace.shards))
    model.load_state_dict(best.weights)
    assert len(list((tmp_path / "parts" / "overlays").iterdir())) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train.log_gradients": True}, r"train\.log_gradients .* cluster\.shard"),
        ({"train.ema_decay": 0.9}, "ema_decay keeps a second model"),
        ({"train.precision": "fp16"}, "take bf16 or fp32"),
    ],
)
def test_what_needs_the_whole_model_is_refused_before_ray_starts(
    workspace, values: dict[str, Any], message: str
) -> None:
    params = workspace.write(**{"cluster.num_workers": 2, "cluster.shard": True, **values})
    with pytest.raises(OptionError, match=message):
        check(params, segcore.open_shards(workspace.shards), workers=2)


def test_nccl_without_gpus_is_refused(workspace) -> None:
    settings = workspace.write(**{"cluster.backend": "nccl"}).cluster
    with pytest.raises(ClusterError, match=r"cluster\.backend is nccl, and there are no GPUs"):
        session.check_room(2, settings, session.Resources(cpus=8, gpus=0))


def test_an_error_that_the_user_can_mend_is_one_line_and_never_retried(workspace) -> None:
    workspace.write(**{"cluster.num_workers": 2, "train.lr": 1e30, **EXACT})
    done = subprocess.run(
        workspace.command("train"),
        cwd=workspace.root,
        env=workspace.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "is not finite by step" in errors[0]
    assert not (workspace.root / "outputs/candidate").exists()


def test_an_error_of_one_worker_ends_those_that_wait_for_it(workspace, tmp_path: Path) -> None:
    def worker(params: Params, shards: Path, folder: Path, resume: Any) -> Iterator[Any]:
        import torch.distributed as dist

        with (folder / f"starts-{dist.get_rank()}").open("a") as file:
            file.write("started\n")
        if dist.get_rank() == 1:
            raise DataError("sample 7 is broken: mend it")
        dist.barrier()
        yield from ()

    params = workspace.write(**{"cluster.num_workers": 2})
    state = RunState(tmp_path / "run", metric="val/miou", mode="max")
    with pytest.raises(DataError, match=r"^sample 7 is broken: mend it$"):
        ray_train.run(worker, params, workspace.shards, state=state)
    for rank in (0, 1):
        assert (tmp_path / "run" / f"starts-{rank}").read_text() == "started\n"
    assert not workers()


def test_more_workers_than_processors_are_refused_before_ray_starts(workspace) -> None:
    params = workspace.write(**{"cluster.num_workers": 3, "cluster.cpus_per_worker": 1000})
    with pytest.raises(ClusterError, match=r"3 .*need 3000 CPUs, .* are there: set"):
        fit(params, workspace.shards, workspace.root / "run")
    ray = sys.modules.get("ray")  # importing it here would fix its settings too early
    assert ray is None or not ray.is_initialized()


def test_more_workers_than_gpus_are_refused(workspace) -> None:
    settings = workspace.write().cluster
    with pytest.raises(ClusterError, match="need 2 GPUs, 1 are there"):
        session.check_room(2, settings, session.Resources(cpus=8, gpus=1))


def test_a_worker_is_on_one_node(workspace) -> None:
    settings = workspace.write(**{"cluster.cpus_per_worker": 2}).cluster
    session.check_room(2, settings, session.Resources(cpus=5, gpus=0, nodes=(3, 2)))
    with pytest.raises(
        ClusterError, match=r"4 are there \(3 \+ 1, .*set cluster.num_workers to 1 "
    ):
        session.check_room(2, settings, session.Resources(cpus=4, gpus=0, nodes=(3, 1)))
    with pytest.raises(ClusterError, match=r"cluster.cpus_per_worker to less"):
        session.check_room(1, settings, session.Resources(cpus=2, gpus=0, nodes=(1, 1)))


def test_lean_trainer_is_for_the_ray_that_is_installed() -> None:
    from pipelines.cluster.lean import LeanTrainer, trainer_class

    assert trainer_class() is LeanTrainer


def test_no_cluster_at_an_address_is_said(workspace) -> None:
    params = workspace.write(**{"cluster.address": "127.0.0.1:9"})
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:9.*ray start"):
        fit(params, workspace.shards, workspace.root / "run")
