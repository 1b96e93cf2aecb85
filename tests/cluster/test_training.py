"""Training across two nodes, of which any part may die."""

import signal
import time
from typing import Any

import pytest

from tests.cluster.conftest import LIMIT_S

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
STEPS = {"train.epochs": 5, "train.checkpoint_steps": 2}  # of four steps each


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    """Filled by the first test: weights and curve of the run that nothing disturbs."""
    return {}


def curve(log: str) -> list[str]:
    """What was printed of each epoch, without speeds and times."""
    lines = [line for line in log.splitlines() if line.startswith("epoch ")]
    return [line.partition(" images/s")[0].rpartition("  ")[0] for line in lines]


def test_two_nodes_train_together(cluster, project, undisturbed) -> None:
    project.use(cluster, **STEPS)
    process = project.start("train")
    seen: set[str] = set()

    def spread() -> bool:
        nodes = (cluster.head, cluster.other)
        seen.update(node.name for node in nodes if node.find("RayTrainWorker"))
        return len(seen) == 2

    project.wait(process, spread)
    assert process.wait(LIMIT_S) == 0, project.log.read_text()
    undisturbed["curve"] = curve(project.log.read_text())
    assert len(undisturbed["curve"]) == 5
    undisturbed["weights"] = project.weights


def test_a_worker_and_then_the_driver_killed_change_no_bit(cluster, project, undisturbed) -> None:
    project.use(cluster, **STEPS)
    process = project.start("train")
    project.wait(process, lambda: len(project.events()) >= 2)
    (victim,) = cluster.other.find("RayTrainWorker")
    victim.send_signal(signal.SIGKILL)
    killed = len(project.events())
    project.wait(process, lambda: len(project.events()) >= killed + 2)
    repeated = [event["step"] for event in project.events()[killed:]]
    assert repeated[0] - project.events()[killed - 1]["step"] <= 2
    for driver in cluster.head.find("pipelines.train"):
        driver.kill()
    process.wait(LIMIT_S)
    log = project.run("train")
    assert "resuming at step" in log
    assert project.weights == undisturbed["weights"]


def test_a_lost_head_is_one_line_and_the_run_is_kept(cluster, project) -> None:
    project.use(cluster, **{"train.epochs": 500, "train.checkpoint_steps": 2})
    process = project.start("train")
    project.wait(process, lambda: len(project.events()) >= 3)
    (control,) = cluster.head.find("gcs_server")
    control.kill()
    began = time.monotonic()
    assert process.wait(LIMIT_S) == 1
    print(f"ended {time.monotonic() - began:.1f} s after the head")
    lines = project.log.read_text().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines
    assert "the head of the Ray cluster" in errors[0]
    assert "the same command goes on" in errors[0]
    assert not [line for line in lines if "Traceback" in line]
    assert list(project.root.glob("outputs/runs/train-*/checkpoints/step-*.pt"))
