"""`segcore clean`: what it lists, what it removes, and what it never touches."""

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines import storage
from pipelines.clean import amount, duration
from pipelines.cli import app
from pipelines.params import Params
from segcore.data.cache import locked

DIGEST = "0123456789abcdef"
OLD_S = 7200


def fill(path: Path, size: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def age(root: Path) -> None:
    """Let everything below a folder be two hours old."""
    then = time.time() - OLD_S
    for path in [*root.rglob("*"), root]:
        os.utime(path, (then, then))


@pytest.fixture
def runs(project: Params, tmp_path: Path) -> Path:
    """A storage folder with one of everything, two hours old; params.yaml names it."""
    import yaml

    Path("params.yaml").write_text(yaml.safe_dump(project.dump()))
    home = tmp_path / "runs"
    fill(home / f"train-{DIGEST}/checkpoints/step_1/state.pt", 5_000_000)
    fill(home / f"tune-{DIGEST}/search/state.json")
    fill(home / f"cache/painted-train-{DIGEST}.cache", 3_000_000)
    fill(home / "cache/painted-train.lock", 0)
    fill(home / f"models/{DIGEST}/model.json")
    fill(home / f"evaluations/{DIGEST}.parquet")
    fill(home / "tracking/f00d/records.jsonl")
    fill(home / "ray_token")
    fill(home / "my own notes/train.txt")
    age(home)
    return home


def clean(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["clean", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def files(root: Path) -> set[str]:
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    return found - {"cache/painted-train.lock"}


def test_lists_sizes_and_ages_and_removes_nothing_by_itself(runs: Path) -> None:
    before = files(runs)
    listed = clean()
    row = next(line for line in listed.splitlines() if f"train-{DIGEST}" in line)
    assert "5.0 MB" in row
    assert "2 h" in row
    assert "unfinished train" in row
    assert "notes" not in listed
    assert "8.0 MB could go: segcore clean --yes" in listed
    assert files(runs) == before


def test_yes_removes_all_but_undelivered_records_and_what_is_not_ours(runs: Path) -> None:
    said = clean("--yes")
    assert files(runs) == {"tracking/f00d/records.jsonl", "ray_token", "my own notes/train.txt"}
    assert "not delivered yet" in said
    assert "nothing to remove" in clean("--yes")


def test_a_run_that_goes_on_is_kept_however_long_it_is_silent(runs: Path) -> None:
    code = (
        "from pipelines import storage; import sys, time\n"
        f"storage.run_folder({str(runs)!r}, 'train', {DIGEST!r})\n"
        "print('holding', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"holding\n"
        age(runs)
        assert "in use by a running process" in clean("--yes")
        assert (runs / f"train-{DIGEST}/checkpoints/step_1/state.pt").is_file()
        assert not (runs / f"tune-{DIGEST}").exists()
    finally:
        holder.communicate()
    age(runs)  # a shared lock of an ended process is none
    clean("--yes")
    assert not (runs / f"train-{DIGEST}").exists()


def test_what_changed_lately_is_kept(runs: Path) -> None:
    fill(runs / f"tune-{DIGEST}/events.jsonl")
    said = clean("--yes")
    assert "it may be in use" in said
    assert (runs / f"tune-{DIGEST}/search/state.json").is_file()
    assert not (runs / f"train-{DIGEST}").exists()


def test_a_mapped_or_locked_cache_is_kept(runs: Path) -> None:
    cache = runs / f"cache/painted-train-{DIGEST}.cache"
    with cache.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    assert "in use by a running process" in clean("--yes")
    mapped.close()
    with locked(runs / "cache/painted-train.lock"):
        age(runs)
        assert "being written by a running process" in clean("--yes")
    assert cache.is_file()
    age(runs)
    clean("--yes")
    assert not cache.exists()


def test_run_folders_do_not_exclude_each_other(tmp_path: Path) -> None:
    first = storage.run_folder(tmp_path, "train", DIGEST)
    assert storage.run_folder(tmp_path, "train", DIGEST) == first


def test_amounts_and_durations_read_well() -> None:
    assert [amount(size) for size in (0, 999, 1500, 2.5e9)] == ["0 B", "999 B", "1.5 kB", "2.5 GB"]
    assert [duration(s) for s in (9, 120, 7200, 200_000)] == ["9 s", "2 min", "2 h", "2 d"]
