"""The store of checkpoints: whole files only, after a kill, damage or a full disk."""

import os
import resource
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch

from segcore.engine import CheckpointStore
from segcore.errors import CheckpointError


def state(step: int, size: int = 1000) -> dict[str, object]:
    return {"step": step, "model": {"weight": torch.full((size,), float(step))}, "task": {}}


def test_latest_is_the_newest_and_only_keep_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run", keep=2)
    assert store.latest() is None
    for step in (1, 20, 3_000):
        store.save(state(step), step)
    latest = store.latest()
    assert latest is not None
    assert store.load(latest)["step"] == 3_000
    assert len(list((tmp_path / "run").iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_damaged_newest_falls_back_with_a_warning(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path)
    store.save(state(1), 1)
    newest = store.save(state(2), 2)
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 0xFF
    newest.write_bytes({"truncate": content[:-100], "flip": content, "empty": b""}[damage])
    with pytest.warns(RuntimeWarning, match="is damaged"):
        latest = store.latest()
    assert latest is not None
    assert store.load(latest)["step"] == 1
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        store.load(newest)


def test_file_with_a_pickled_object_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save({"object": Path("x")}, 1)
    with pytest.raises(CheckpointError, match="cannot read checkpoint"):
        store.load(path)


def test_full_disk_is_told_and_the_earlier_checkpoint_stays(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(state(1), 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot write .*MiB free there.*kept"):
            store.save(state(2, size=1_000_000), 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    latest = store.latest()
    assert latest is not None
    assert store.load(latest)["step"] == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        CheckpointStore(tmp_path / "run").save(state(1), 1)


def test_kill_while_saving_leaves_a_loadable_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(state(0), 0)
    content = state(7, size=300_000)
    for attempt in range(8):
        child = os.fork()
        if child == 0:
            for step in range(1, 100_000):
                store.save(content, step)
            os._exit(0)
        time.sleep(0.05 + 0.013 * attempt)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            latest = store.latest()
        assert latest is not None
        assert store.load(latest)["model"]["weight"].shape[0] in (1000, 300_000)
    store.save(state(10**6), 10**6)
    assert not list(tmp_path.glob(".*")), "what the kills left is cleared by the next save"


def test_best_finish_and_clear(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert store.best() is None
    store.save(state(1), 1)
    store.save_best({"w": torch.ones(2)}, {"val/miou": 0.5})
    store.save_best({"w": torch.zeros(2)}, {"val/miou": 0.7})
    found = store.best()
    assert found is not None
    assert torch.equal(found[0]["w"], torch.zeros(2))
    assert found[1] == {"val/miou": 0.7}
    assert not store.finished
    store.finish()
    assert CheckpointStore(tmp_path).finished
    store.clear()
    assert not store.finished
    assert store.latest() is None
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
