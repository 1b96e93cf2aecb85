"""The plan of a run on a cluster is made for the cluster's nodes, not for the machine that asks."""

import subprocess
from pathlib import Path

import pytest
import yaml

from pipelines.cluster.node import training_machine
from pipelines.params import Params
from segcore.data.prepare import prepare
from segcore.datasets import DataSource, create_dataset
from segcore.machine import describe_machine

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
SIZES = {"num_train": 4, "num_val": 2, "num_test": 2, "height": 64, "width": 96}
AUTO = {"train.precision": "auto", "train.batch_size": "auto"}


def streets(root: Path) -> None:
    """Shards with the facts that a plan follows from."""
    source = DataSource(raw=root / "data/raw/streets", options=SIZES)
    dataset = create_dataset("streets", source)
    dataset.download()
    prepare(dataset, root / "data/shards/streets", workers=1)


def test_shards_without_facts_are_refused_in_one_line(workspace) -> None:
    workspace.write(**AUTO)
    done = subprocess.run(
        workspace.command("plan"), env=workspace.environment(), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "run the prepare stage again" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_cluster_the_machine_is_this_one(workspace) -> None:
    assert training_machine(workspace.write().cluster) == describe_machine()


def test_the_node_of_a_cluster_is_described_and_timed(workspace, head) -> None:
    streets(workspace.root)
    values = {"data.name": "streets", "data.options": SIZES, "cluster.address": head.address}
    workspace.write(**values, **{"train.epoch_steps": "auto"}, **AUTO)
    done = subprocess.run(
        workspace.command("plan"),
        env={**workspace.environment(), **head.environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    plan = yaml.safe_load((workspace.root / "outputs" / "plan.yaml").read_text())
    here = describe_machine()
    assert plan["machine"] == {**here.to_json(), "cores": plan["machine"]["cores"]}
    assert plan["decisions"]["train.precision"]["value"] == ("bf16" if here.fast_bf16 else "fp32")


def test_a_cluster_that_is_away_is_one_line(workspace) -> None:
    workspace.write(**{"cluster.address": "127.0.0.1:9", **AUTO})
    done = subprocess.run(
        workspace.command("plan"),
        env=workspace.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "127.0.0.1:9" in done.stderr
    assert Params.load().cluster.address == "127.0.0.1:9"
