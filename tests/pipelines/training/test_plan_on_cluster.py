"""The plan of a run on a cluster is made for the cluster's nodes, not for the machine that asks."""

import subprocess

import pytest
import yaml

from pipelines.cluster.node import training_machine
from pipelines.params import Params
from segcore.machine import describe_machine

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
AUTO = {"train.precision": "auto", "train.batch_size": "auto"}


def test_without_a_cluster_the_machine_is_this_one(workspace) -> None:
    assert training_machine(workspace.write().cluster) == describe_machine()


def test_the_node_of_a_cluster_is_described_and_timed(workspace, head) -> None:
    workspace.write(**{"cluster.address": head.address, "train.epoch_steps": "auto", **AUTO})
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
