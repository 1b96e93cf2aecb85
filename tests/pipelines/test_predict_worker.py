"""The worker of a prediction: bounded queues, pictures that run together, pictures at once."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.mirror import Mirror
from pipelines.params import Params
from pipelines.prediction.inputs import find_inputs
from pipelines.prediction.job import Job, make_job
from pipelines.prediction.worker import Work, Worker
from segcore.inference.network import Network

OUT = Path("out")
COUNT = 46


@pytest.fixture
def works(project: Params) -> list[Work]:
    """Pictures of noise of two sizes in turn."""
    Path("images").mkdir()
    for index in range(COUNT):
        height, width = 48, 64 if index % 2 else 80
        pixels = np.random.default_rng(index).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"images/{index:02}.png")
    return [(item, None) for item in sorted(find_inputs("images"), key=lambda item: item.path)]


def make(params: Params, package: Path, *, batch: int = 1, overlays: bool = False) -> Job:
    params = params.override({"predict.batch_size": batch})
    return make_job(params, package=package, version="", out=Mirror(OUT), overlays=overlays)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_queues_are_bounded(
    project: Params,
    works: list[Work],
    good_package: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
) -> None:
    read, done = [], []
    real, write = Worker._read, Worker._write

    def count(self: Worker, work: Any) -> Any:
        read.append(work)
        assert len(read) - len(done) <= 6 * batch + 8
        return real(self, work)

    def slowly(self: Worker, *given: Any) -> Any:
        time.sleep(0.02)  # all queues before it fill up
        return write(self, *given)

    monkeypatch.setattr(Worker, "_read", count)
    monkeypatch.setattr(Worker, "_write", slowly)
    worker = Worker(make(project, good_package, batch=batch))
    for row, (item, _) in zip(worker.stream(works), works, strict=True):
        assert (row.path, row.status) == (item.path, "ok")
        done.append(row)


def test_pictures_of_one_size_run_together_wherever_they_lie(
    project: Params, works: list[Work], good_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[int, ...]] = []
    real = Network.__call__

    def see(self: Network, pixels: torch.Tensor) -> torch.Tensor:
        passes.append(tuple(pixels.shape[:3]))
        return real(self, pixels)

    monkeypatch.setattr(Network, "__call__", see)
    rows = list(Worker(make(project, good_package, batch=4)).stream(works[:16]))
    assert [row.path for row in rows] == [item.path for item, _ in works[:16]]
    assert sorted(passes) == [(4, 48, 64)] * 2 + [(4, 48, 80)] * 2


@pytest.mark.parametrize("streams", [2, 3])
def test_images_that_run_at_once_become_what_they_become_one_by_one(
    project: Params,
    works: list[Work],
    good_package: Path,
    monkeypatch: pytest.MonkeyPatch,
    streams: int,
) -> None:
    Path("images/05.png").write_text("no image")
    # Those of 80 x 48 are large: each waits for the others, and they for it.
    monkeypatch.setattr("pipelines.prediction.worker.LARGE_MEGAPIXELS", 0.0035)
    found = []
    for count in (1, streams):
        threads = torch.get_num_threads()
        worker = Worker(make(project, good_package, overlays=True), streams=count)
        rows = list(worker.stream(works))
        assert torch.get_num_threads() == threads
        files = {str(file): file.read_bytes() for file in OUT.rglob("*.[pj][np]g")}
        assert len(files) == 2 * (COUNT - 1)
        found.append(([{**vars(row), "seconds": 0} for row in rows], files))
        os.rename(OUT, f"out-{count}")
    assert [row["path"] for row in found[0][0]] == [item.path for item, _ in works]
    assert [row["status"] for row in found[0][0]].count("error") == 1
    assert found[0] == found[1]
