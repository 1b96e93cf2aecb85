"""Searches with real Ray: trials that are killed, a population, several objectives, groups."""

import json
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from mlflow import MlflowClient

import segcore
from pipelines.params.tune import SEED

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
LR = {"train.lr": {"kind": "loguniform", "low": 0.001, "high": 0.01}}


def start(workspace: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        workspace.command("tune"),
        cwd=workspace.root,
        env=workspace.environment(),
        stdout=(workspace.root / "log").open("a"),
        stderr=subprocess.STDOUT,
        text=True,
    )


def log(workspace: Any) -> str:
    return (workspace.root / "log").read_text()


def wait_for(workspace: Any, process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 400
    while not ready():
        assert process.poll() is None, log(workspace)
        assert time.monotonic() < end, log(workspace)
        time.sleep(0.05)


def stored_epochs(root: Path) -> int:
    """Epochs after which the only trial has left a checkpoint."""
    files = list(root.glob("outputs/runs/tune-*/trials/*/events.jsonl"))
    lines = files[0].read_text().splitlines() if files else []
    return sum(json.loads(line)["complete"] for line in lines if line.endswith("}"))


def trial_process(driver: subprocess.Popen[str]) -> psutil.Process:
    below = psutil.Process(driver.pid).children(recursive=True)
    return next(one for one in below if "ImplicitFunc" in " ".join(one.cmdline()))


def children(store: str, parent: str) -> list[Any]:
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("segcore")
    query = f"tags.`mlflow.parentRunId` = '{parent}'"
    return list(client.search_runs([experiment.experiment_id], query, max_results=100))


def epochs_logged(store: str, run_id: str) -> Counter[int]:
    points = MlflowClient(store).get_metric_history(run_id, "val/miou")
    return Counter(point.step for point in points)


def best_of(root: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((root / "outputs/tune/best.yaml").read_text()))


def test_optuna_is_told_the_means_of_the_seeds_for_each_objective(workspace) -> None:
    from pipelines.cluster.proposals import Proposals
    from pipelines.cluster.tuner import _space

    goals = {"tune.metric": ["miou", "milliseconds"], "tune.mode": ["max", "min"]}
    params = workspace.write(**{**goals, "tune.seeds": 2, "tune.space": LR, "train.seed": 5})
    search = Proposals(params.tune, first_seed=params.train.seed)
    assert search.set_search_properties(None, None, _space(params))
    asked = {f"t{index}": search.suggest(f"t{index}") for index in range(6)}
    assert [values[SEED] for values in asked.values()] == [5, 6] * 3
    lrs = [values["train.lr"] for values in asked.values()]
    assert lrs[0] == lrs[1] != lrs[2] == lrs[3]
    told = {"t0": (0.5, 10.0), "t1": (0.7, 14.0), "t2": (0.2, 4.0), "t4": (float("nan"), 4.0)}
    for name, (miou, ms) in told.items():
        search.on_trial_complete(name, {"val/miou": miou, "val/milliseconds": ms})
    search.on_trial_complete("t3", None, error=True)
    search.on_trial_complete("t5", {"done": True})
    trials = search._ot_study.trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert trials[0].values == pytest.approx([0.6, 12.0])
    assert trials[1].values == [0.2, 4.0]
    assert {trial.number for trial in search._ot_study.best_trials} == {0, 1}


def trainable(job: Any, values: dict[str, Any], name: str, root: Path) -> Any:
    """A trial as Ray's worker has it, in this process."""
    from functools import partial

    from ray.train._internal.storage import StorageContext
    from ray.tune.experiment.trial import Trial, _TrialInfo
    from ray.tune.result import TRIAL_INFO
    from ray.tune.trainable.function_trainable import wrap_function

    from pipelines.cluster.trial import run_trial

    place = StorageContext(root / "ray", "search", trial_dir_name=name)
    trial = Trial("painted", stub=True, trial_id=name, storage=place)
    config = {**values, TRIAL_INFO: _TrialInfo(trial)}
    return wrap_function(partial(run_trial, job=job))(config, storage=place)


def test_a_trial_goes_on_with_the_weights_of_another_one_and_its_own_values(
    workspace, monkeypatch
) -> None:
    from pipelines.cluster.trial import TrialJob
    from pipelines.mirror import Mirror
    from pipelines.searching.worker import trial_worker

    population = {"tune.scheduler": "pbt", "tune.metric": "miou", "tune.mode": "max"}
    fixed = {"train.warmup_fraction": 0.0, "train.schedule": "constant", "tune.epochs": 4}
    params = workspace.write(**{**population, **fixed, "tune.space": LR})
    shards, root = workspace.shards, workspace.root / "population"
    job = TrialJob(trial_worker, params, shards, Mirror(root), threads=1, use_gpu=False)
    here = "ray.train._internal.storage._get_ray_train_session_dir"
    monkeypatch.setattr(here, lambda: str(root))  # of a Ray that is not started
    good = trainable(job, {"train.lr": 0.005}, "good", root)
    results = [good.train() for _ in range(3)]
    saved = good.save()
    good.stop()
    poor = trainable(job, {"train.lr": 1e-9}, "poor", root)
    before = poor.train()
    poor.stop()
    taker = trainable(job, {"train.lr": 1e-9}, "poor", root)
    taker.restore(saved)
    after = taker.train()
    kept = taker.save()
    taker.stop()
    assert [result["epoch"] for result in results] == [1, 2, 3]
    assert (before["epoch"], after["epoch"]) == (1, 4)
    assert after["lr"] == pytest.approx(1e-9)
    assert after["train/loss"] < results[0]["train/loss"]
    weights = [parameters(Path(one.checkpoint.path)) for one in (saved, kept)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-6, rtol=0)


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    """Weights in a checkpoint, without running statistics."""
    store = segcore.CheckpointStore(folder)
    latest = store.latest()
    assert latest is not None
    state = store.load(latest)["model"]
    return {name: value for name, value in state.items() if name.endswith(("weight", "bias"))}


def test_changed_values_of_a_population_stay_within_their_range() -> None:
    from pipelines.cluster.population import _within
    from pipelines.params.space import Choice, RandInt, Uniform

    uniform = Uniform(kind="loguniform", low=0.1, high=1.0)
    assert [_within(value, uniform) for value in (0.08, 0.5, 1.2)] == [0.1, 0.5, 1.0]
    assert [_within(x, RandInt(kind="randint", low=2, high=9)) for x in (1, 4, 9)] == [2, 4, 8]
    assert _within('"dice"', Choice(kind="choice", values=["dice"])) == '"dice"'


def test_a_killed_trial_and_a_killed_search_go_on_from_the_trials_checkpoint(workspace) -> None:
    epochs = 10
    workspace.write(
        **{"tune.trials": 1, "tune.epochs": epochs, "tune.space": LR, "tune.scheduler": "none"}
    )
    process = start(workspace)
    wait_for(workspace, process, lambda: stored_epochs(workspace.root) >= 2)
    trial_process(process).kill()
    first = stored_epochs(workspace.root)
    wait_for(workspace, process, lambda: stored_epochs(workspace.root) >= first + 2)
    process.kill()
    process.wait()
    time.sleep(5)  # Ray's processes of the killed driver end
    done = start(workspace)
    assert done.wait(600) == 0, log(workspace)
    assert log(workspace).count("its process died; it goes on from its checkpoint") == 1
    assert "Traceback" not in log(workspace)
    best = best_of(workspace.root)
    assert best["trials"] == {"completed": 1, "pruned": 0, "failed": 0}
    (child,) = children(workspace.store, best["run_id"])
    assert child.info.status == "FINISHED"
    logged = epochs_logged(workspace.store, child.info.run_id)
    assert set(logged) == set(range(1, epochs + 1))
    # An epoch that was told, but not stored yet, is trained again; never the first ones.
    assert sum(logged.values()) <= epochs + 2
    assert logged[1] == logged[2] == 1
    shutil.rmtree(workspace.root / "outputs")
    assert start(workspace).wait(600) == 0, log(workspace)
    undisturbed = best_of(workspace.root)
    assert undisturbed["overrides"] == best["overrides"]
    assert best["value"] == pytest.approx(undisturbed["value"], abs=1e-6)


def test_a_population_takes_over_weights_and_values_under_two_objectives(workspace) -> None:
    lr = {"train.lr": {"kind": "choice", "values": [1e-9, 0.005]}}
    workspace.write(
        **{
            "tune.trials": 4,
            "tune.epochs": 4,
            "tune.concurrent": 2,
            "tune.scheduler": "pbt",
            "tune.metric": ["auto", "milliseconds"],
            "tune.choose": {"milliseconds": 60_000.0},
            "tune.space": lr,
            "train.warmup_fraction": 0.0,
            "train.schedule": "constant",
            "tune.seed": 1,
        }
    )
    assert start(workspace).wait(800) == 0, log(workspace)
    best = best_of(workspace.root)
    assert best["trials"]["completed"] == 4
    assert set(best["figures"]) == {"miou", "milliseconds"}
    assert best["figures"]["milliseconds"] > 0
    assert "4 of 4 within tune.choose" in best["chosen"]
    taken = re.findall(r"trial (\w+) takes over from (\w+): train.lr=", log(workspace))
    assert taken
    runs = {run.data.tags["trial"]: run for run in children(workspace.store, best["run_id"])}
    client = MlflowClient(workspace.store)
    gains = []
    for name, _ in taken:
        run = runs[name]
        assert "final.train.lr" in run.data.tags
        losses = {p.step: p.value for p in client.get_metric_history(run.info.run_id, "train/loss")}
        gains.append(losses[1] - losses[max(losses)])
    # One that began at 1e-9 learns nothing by itself; with the weights of another it is far on.
    stuck = [run for run in runs.values() if float(run.data.params["train.lr"]) < 1e-6]
    assert stuck
    assert max(gains) > 0.1
    page = (workspace.root / "outputs/tune/search.html").read_text()
    assert "miou against milliseconds" in page
    assert "weights of" in page


def test_each_draw_of_values_is_tried_with_every_seed(workspace) -> None:
    space = {"loss.name": {"kind": "choice", "values": ["cross_entropy", "dice_ce"]}}
    workspace.write(
        **{
            "tune.trials": 4,
            "tune.epochs": 1,
            "tune.seeds": 2,
            "tune.search": "random",
            "tune.scheduler": "none",
            "tune.space": space,
        }
    )
    assert start(workspace).wait(800) == 0, log(workspace)
    best = best_of(workspace.root)
    assert set(best["overrides"]) == {"loss.name"}
    found = [run.data.params for run in children(workspace.store, best["run_id"])]
    by_loss: dict[str, list[str]] = {}
    for values in found:
        by_loss.setdefault(values["loss.name"], []).append(values[SEED])
    seeds = [seed for group in by_loss.values() for seed in group]
    assert sorted(seeds) == ["0", "0", "1", "1"]
    assert all(len(group) % 2 == 0 for group in by_loss.values())


@pytest.mark.slow
def test_trials_of_two_workers_each_end_as_those_of_one(workspace) -> None:
    figures = {}
    for workers in (1, 2):
        workspace.write(
            **{
                "tune.trials": 2,
                "tune.epochs": 2,
                "tune.workers": workers,
                "tune.scheduler": "asha",
                "tune.space": {"train.lr": {"kind": "choice", "values": [0.004]}},
                "model.options": {"base_channels": 4, "norm": "group", "dropout": 0.0},
                "train.augment.hflip": 0.0,
                "train.augment.color": 0.0,
            }
        )
        assert start(workspace).wait(1200) == 0, log(workspace)
        best = best_of(workspace.root)
        assert best["trials"]["failed"] == 0
        assert best["trials"]["completed"] >= 1
        figures[workers] = best["value"]
        states = {run.info.status for run in children(workspace.store, best["run_id"])}
        assert states <= {"FINISHED", "KILLED"}
    assert figures[1] == pytest.approx(figures[2], abs=0.02)
