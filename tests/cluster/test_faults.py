"""Nodes that come and go, and prediction that loses one."""

import signal
import time
from itertools import takewhile
from typing import Any

import pyarrow.parquet as pq
import pytest

import segcore
from pipelines import train
from pipelines.params import Params
from tests.cluster.conftest import LIMIT_S
from tests.pipelines.conftest import build_package

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
COPIES = 12


def losses(events: list[dict[str, Any]]) -> dict[int, float]:
    """Training loss by step; of a step that was done again, the last."""
    return {event["step"]: event["metrics"]["train/loss"] for event in events}


def alone(params: Params, project, last_step: int) -> dict[int, float]:
    """Training loss by step, of one process that nothing disturbs."""
    folder = project.root / "alone"
    folder.mkdir()
    epochs = train.fit_worker(params, project.shards, folder, None)
    reports = takewhile(lambda epoch: epoch.step <= last_step, epochs)
    return {epoch.step: epoch.metrics["train/loss"] for epoch in reports}


def test_from_two_workers_to_one_and_back_the_curve_stays(cluster, project) -> None:
    params = project.use(
        cluster,
        **{
            "cluster.num_workers": {"min": 1, "max": 2},
            "train.epochs": 500,
            "train.checkpoint_steps": 2,
        },
    )
    process = project.start("train")

    def goes_on(reports: int) -> None:
        seen = project.events()[-1]["step"]
        project.wait(process, lambda: project.events()[-1]["step"] > seen + 2 * reports)

    project.wait(process, lambda: len(project.events()) >= 3)
    assert cluster.other.find("RayTrainWorker")
    cluster.other.kill()
    began = time.monotonic()
    goes_on(2)
    print(f"with one worker after {time.monotonic() - began:.1f} s")
    (worker,) = cluster.head.find("RayTrainWorker")
    worker.send_signal(signal.SIGSTOP)  # so that few steps pass while the node starts
    cluster.start_other()
    worker.send_signal(signal.SIGCONT)
    began = time.monotonic()
    project.wait(process, lambda: bool(cluster.other.find("RayTrainWorker")))
    goes_on(2)
    print(f"with two workers again after {time.monotonic() - began:.1f} s")
    for driver in cluster.head.find("pipelines.train"):
        driver.terminate()
    assert process.wait(LIMIT_S) == 143
    curve = losses(project.events())
    expected = alone(params, project, max(curve))
    for step in expected.keys() & curve.keys():
        assert curve[step] == pytest.approx(expected[step], rel=2e-3, abs=2e-3), step
    # A kill between a checkpoint and word of it costs the word; no report is ever repeated.
    assert len(expected.keys() - curve.keys()) <= 1
    steps = [event["step"] for event in project.events()]
    assert steps == sorted(set(steps))


def test_prediction_that_loses_a_node_writes_each_mask_once(cluster, project) -> None:
    package = build_package(project.root / "package", project.shards, steps=3)
    images = project.root / "images"
    images.mkdir()
    split = segcore.open_shards(project.shards).split("train")
    for index in range(COPIES * len(split)):
        row = split.read(index % len(split))
        (images / f"{index:04}.png").write_bytes(row.image)
    project.use(
        cluster,
        **{
            "predict.images": str(images),
            "predict.model": str(package),
            "predict.batch_size": 2,
            "predict.overlays": False,
        },
    )
    process = project.start("predict")
    masks = project.root / "outputs/predictions/masks"
    project.wait(process, lambda: masks.is_dir() and len(list(masks.glob("*.png"))) > 8)
    busy = bool(cluster.other.find("ray::"))
    cluster.other.kill()
    assert busy
    assert process.wait(LIMIT_S) == 0, project.log.read_text()
    rows = pq.read_table(masks.parent / "manifest.parquet").to_pylist()
    names = sorted(file.name for file in images.iterdir())
    assert sorted(row["path"].rpartition("/")[2] for row in rows) == names
    assert {row["status"] for row in rows} == {"ok"}
    assert sorted(file.name for file in masks.iterdir()) == names
    cluster.start_other()
