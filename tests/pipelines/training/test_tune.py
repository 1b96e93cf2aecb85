"""Stage tune with real Ray: best.yaml, nested runs in their true states, a kill, and bad spaces."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

import segcore
from pipelines import train, tune
from pipelines.cluster.trial_facts import values_of
from segcore.data.codec import encode_image, encode_mask
from segcore.data.shards import write_shards
from segcore.errors import DataError, OptionError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
SPACE = {
    "loss.name": {"kind": "choice", "values": ["cross_entropy", "dice_ce"]},
    "train.lr": {"kind": "loguniform", "low": 0.001, "high": 0.01},
    "model.options": {
        "kind": "choice",
        "values": [{"base_channels": 4, "norm": "batch"}, {"base_channels": 6, "norm": "batch"}],
    },
}


def states(store: str, parent: str) -> dict[str, tuple[str, str | None]]:
    """Status and outcome of the trials' runs, by trial."""
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("segcore")
    found = client.search_runs(
        [experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=100
    )
    assert all("train.lr=" in run.info.run_name for run in found)
    return {r.data.tags["trial"]: (r.info.status, r.data.tags.get("outcome")) for r in found}


def parent_of(root: Path) -> str:
    file = next(root.glob("outputs/runs/tune-*/run.json"))
    return str(json.loads(file.read_text())["run_id"])


def test_killed_search_goes_on_and_every_run_ends_in_its_true_state(workspace) -> None:
    params = workspace.write(**{"tune.trials": 4, "tune.epochs": 4, "tune.space": SPACE})
    command, environment = workspace.command("tune"), workspace.environment()
    process = subprocess.Popen(command, cwd=workspace.root, env=environment)
    end = time.monotonic() + 300
    while not (files := list(workspace.root.glob("outputs/runs/tune-*/runs.json"))) or (
        len(json.loads(files[0].read_text())) < 2
    ):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    process.wait()
    parent = parent_of(workspace.root)
    begun = states(workspace.store, parent)
    time.sleep(5)  # Ray's processes of the killed driver end
    done = subprocess.run(
        command, cwd=workspace.root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "going on with the search" in done.stdout
    best = yaml.safe_load((workspace.root / "outputs/tune/best.yaml").read_text())
    assert best["run_id"] == parent
    ended = states(workspace.store, parent)
    assert set(begun) <= set(ended)
    # A trial begun just before the kill may be forgotten by the search: its run has no outcome.
    expected = {"completed": "FINISHED", "pruned": "KILLED", None: "KILLED"}
    assert all(expected[outcome] == status for status, outcome in ended.values())
    known = [outcome for _, outcome in ended.values() if outcome]
    assert len(known) == 4 == sum(best["trials"].values())
    assert MlflowClient(workspace.store).get_run(parent).info.status == "FINISHED"
    assert set(best["overrides"]) == set(SPACE)
    assert best["overrides"]["model.options"] in SPACE["model.options"]["values"]
    tuned, overrides = train.tuned(params, workspace.root / "outputs/tune/best.yaml")
    assert (tuned.train.lr, tuned.loss.name) == (overrides["train.lr"], overrides["loss.name"])
    assert not list(workspace.root.glob("outputs/runs/tune-*"))


def test_terminated_search_closes_its_runs(workspace) -> None:
    workspace.write(**{"tune.trials": 3, "tune.epochs": 300, "tune.grace_epochs": 300})
    command, environment = workspace.command("tune"), workspace.environment()
    process = subprocess.Popen(command, cwd=workspace.root, env=environment)
    end = time.monotonic() + 300
    while not list(workspace.root.glob("outputs/runs/tune-*/trials/*/progress.json")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) == 143
    parent = parent_of(workspace.root)
    assert {status for status, _ in states(workspace.store, parent).values()} == {"KILLED"}
    assert MlflowClient(workspace.store).get_run(parent).info.status == "KILLED"
    assert not (workspace.root / "outputs/tune/best.yaml").exists()


def test_no_trials_means_params_as_they_are(workspace) -> None:
    params = workspace.write(**{"tune.trials": 0})
    tune.main()
    ray = sys.modules.get("ray")  # importing it here would fix its settings too early
    assert ray is None or not ray.is_initialized()
    tuned, overrides = train.tuned(params, workspace.root / "outputs/tune/best.yaml")
    assert (tuned, overrides) == (params, {})


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"train.lrr": {"kind": "uniform", "low": 0.1, "high": 0.2}}, "did you mean train.lr"),
        ({"train.lr": {"kind": "uniform", "low": -0.1, "high": 0.2}}, "train.lr is -0.1"),
        ({"train.lr": {"kind": "uniform", "low": 0.3, "high": 0.2}}, "low must be less than high"),
        ({"train.lr": {"kind": "loguniform", "low": 0.0, "high": 0.2}}, "above 0"),
        ({"data.seed": {"kind": "randint", "low": 0, "high": 3}}, "model, loss, train"),
        ({"train.epochs": {"kind": "randint", "low": 1, "high": 3}}, "tune.epochs"),
        ({"loss.name": {"kind": "choice", "values": ["dice", "dise"]}}, "did you mean 'dice'"),
        (
            {"model.options": {"kind": "choice", "values": [{"wide": 1}]}},
            "no option 'wide'",
        ),
    ],
)
def test_bad_space_is_refused_before_anything_starts(workspace, space, message) -> None:
    params = workspace.write(**{"tune.space": space})
    with pytest.raises(Exception, match=message) as caught:
        tune.main()
    assert "segcore" in type(caught.value).__module__
    assert params.tune.trials
    assert not (workspace.root / "outputs" / "tune").exists()


def test_values_of_any_kind_travel_to_trials() -> None:
    config = {"train.lr": 0.5, "loss.name": '"dice"', "loss.options": '{"a": [1, null]}'}
    assert values_of(config) == {
        "train.lr": 0.5,
        "loss.name": "dice",
        "loss.options": {"a": [1, None]},
    }


def test_a_trial_whose_loss_is_not_finite_fails_alone_in_one_line(workspace) -> None:
    space = {"train.lr": {"kind": "choice", "values": [1e30, 0.005]}}
    fixed = {"train.optimizer": "sgd", "train.warmup_fraction": 0.0, "train.schedule": "constant"}
    workspace.write(**{"tune.trials": 4, "tune.epochs": 1, "tune.space": space, **fixed})
    done = subprocess.run(
        workspace.command("tune"),
        cwd=workspace.root,
        env=workspace.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    best = yaml.safe_load((workspace.root / "outputs/tune/best.yaml").read_text())
    assert best["overrides"] == {"train.lr": 0.005}
    failed = [line for line in done.stdout.splitlines() if ": failed after 0 epochs: " in line]
    assert len(failed) == best["trials"]["failed"] > 0
    for line in failed:
        assert "train.lr=1e+30" in line
        assert "is not finite" in line
    assert "Traceback" not in done.stdout + done.stderr
    assert "did not complete" not in done.stderr
    outcomes = sorted(states(workspace.store, best["run_id"]).values())
    assert set(outcomes) == {("FAILED", "failed"), ("FINISHED", "completed")}


def test_an_error_that_no_values_mend_ends_the_search_at_once_in_one_line(workspace) -> None:
    # Pixels that do not match their size: only reading the image shows it.
    dataset = segcore.open_shards(workspace.shards)
    rows = {name: [dataset.split(name).read(i) for i in range(4)] for name in ("train", "val")}
    rows["train"] = [replace(row, image=row.image[:-40]) for row in rows["train"]]
    write_shards(workspace.shards, dataset.meta, splits=rows, encode=lambda row: row)
    workspace.write(**{"tune.trials": 5})
    done = subprocess.run(
        workspace.command("tune"),
        cwd=workspace.root,
        env=workspace.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "train_" in errors[0]
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout.count(": failed after 0 epochs: ") == 1
    assert MlflowClient(workspace.store).get_run(parent_of(workspace.root)).info.status == "FAILED"


def test_what_only_the_loader_refuses_stops_before_ray_starts(workspace, capsys) -> None:
    workspace.write(**{"train.augment.scale": [2.0, 1.0]})
    for main in (tune.main, train.main):
        with pytest.raises(OptionError, match=r"train\.augment\.scale is \(2\.0, 1\.0\)"):
            main()
    mixed_sizes(workspace.shards)
    workspace.write(**{"train.augment.crop": None})
    for main in (tune.main, train.main):
        with pytest.raises(DataError, match="training images have 2 sizes"):
            main()
    ray = sys.modules.get("ray")  # importing it here would fix its settings too early
    assert ray is None or not ray.is_initialized()
    assert not (workspace.root / "outputs").exists()


def mixed_sizes(shards: Path) -> None:
    """Make one training image smaller than the others."""
    dataset = segcore.open_shards(shards)
    rows = {name: [dataset.split(name).read(i) for i in range(4)] for name in ("train", "val")}
    image, mask = dataset.split("train").decode(0)
    small = {"image": encode_image(image[:40], "png"), "mask": encode_mask(mask[:40])}
    rows["train"][0] = replace(rows["train"][0], height=40, **small)
    write_shards(shards, dataset.meta, splits=rows, encode=lambda row: row)
