"""Exactly once: predictions whose processes are killed end as if nobody had disturbed them."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image

from pipelines.params import Params
from pipelines.prediction import journal, manifest
from pipelines.prediction.files import sha256_file
from pipelines.prediction.manifest import Row
from pipelines.prediction.run import ITEMS_PER_CALL, Summary, predict
from pipelines.prediction.verify import verify
from pipelines.prediction.worker import WRITERS

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]

OUT = Path("out")
BATCH = 4
COUNT = 96


@pytest.fixture
def job(project: Params) -> Params:
    """Pictures enough for a process to be caught at work, and params for it to read."""
    Path("images").mkdir()
    for index in range(COUNT):
        pixels = np.random.default_rng(index).integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((256, 192)).save(f"images/{index:03d}.png")
    job = project.override({"predict.batch_size": BATCH})
    Path("params.yaml").write_text(yaml.safe_dump(job.dump()))
    return job


@contextmanager
def predicting(package: Path) -> Iterator[psutil.Process]:
    """`segcore predict` as a process of its own; with all that it started, gone at the end."""
    arguments = ["predict", "images", "--model", str(package), "--out", str(OUT)]
    with Path("log.txt").open("ab") as log:
        command = [sys.executable, "-m", "pipelines.cli", *arguments]
        process = psutil.Popen(command, stdout=log, stderr=log)
    try:
        yield process
    finally:
        kill(process)


def kill(process: psutil.Process) -> None:
    """Kill a driver; its workers end by themselves, and what has not after a while is killed."""
    if not process.is_running():
        return
    below = process.children(recursive=True)
    workers = actors(process)
    process.kill()
    process.wait(30)
    assert not psutil.wait_procs(workers, timeout=60)[1]
    for left in psutil.wait_procs(below, timeout=5)[1]:
        with suppress(psutil.NoSuchProcess):
            left.kill()


def reach(process: psutil.Process, goal: int) -> None:
    """Wait until so many masks are there."""
    while len(masks()) < goal:
        assert process.poll() is None, f"it ended too early: {Path('log.txt').read_text()[-2000:]}"
        time.sleep(0.005)


def masks() -> list[Path]:
    return list((OUT / "masks").glob("*.png"))


def whole_rows() -> dict[str, Row]:
    """The rows that a kill left; each tells of a mask that is there as it was written."""
    rows = manifest.read(OUT)
    for row in rows.values():
        assert sha256_file(OUT / row.mask_path) == row.files[row.mask_path]
    return rows


def finish(job: Params, package: Path) -> Summary:
    return predict(job, images="images", model=str(package), out=OUT, overlays=False)


def check(job: Params, package: Path) -> None:
    """Everything is there once, and as a job that nobody disturbed writes it."""
    verified = verify(job, OUT)
    assert (verified.checked, verified.faults, verified.open) == (COUNT, [], [])
    rows = manifest.read(OUT)
    assert sorted(rows) == [f"images/{index:03d}.png" for index in range(COUNT)]
    assert not journal.exists(OUT)
    assert not [file for file in OUT.rglob("*") if ".part" in file.name]
    quiet = Path("quiet")
    predict(job, images="images", model=str(package), out=quiet, overlays=False)
    for row in manifest.read(quiet).values():
        assert rows[row.path].files == row.files
        assert rows[row.path].facts == row.facts


def test_a_driver_killed_at_any_moment_costs_at_most_a_batch(
    job: Params, good_package: Path
) -> None:
    before: dict[str, Row] = {}
    for more in (1, 29):
        with predicting(good_package) as process:
            reach(process, len(before) + more)
            kill(process)
        rows = whole_rows()
        # In hand: what the writers had renamed and not noted yet.
        assert len(masks()) - len(rows) <= WRITERS
        assert before.items() <= rows.items()
        before = rows
    assert len(before) < COUNT
    half = OUT / "masks" / ".095.png.4242.part.png"
    half.write_bytes(b"half")
    left = finish(job, good_package)
    assert (left.done, left.kept) == (COUNT - len(before), len(before))
    check(job, good_package)


def test_actors_and_the_driver_of_ray_killed_cost_at_most_a_batch_each(
    job: Params, good_package: Path
) -> None:
    many = job.override({"predict.ray_min_images": 1})
    Path("params.yaml").write_text(yaml.safe_dump(many.dump()))
    with predicting(good_package) as process:
        reach(process, 10)
        victims = actors(process)
        assert victims
        for victim in victims:
            victim.kill()
        reach(process, len(masks()) + 30)
        kill(process)
    rows = whole_rows()
    assert len(masks()) - len(rows) <= WRITERS * (1 + len(victims))
    noted = sum(len(records) for records, _ in journal.read(OUT))
    assert noted - len(rows) <= ITEMS_PER_CALL * len(victims)
    assert len(rows) < COUNT
    left = finish(job, good_package)
    assert (left.done, left.kept) == (COUNT - len(rows), len(rows))
    check(job, good_package)


def actors(driver: psutil.Process) -> list[psutil.Process]:
    """Ray's processes below a driver that hold a model."""
    found = []
    for process in driver.children(recursive=True):
        with suppress(psutil.Error):
            if "MapWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found
