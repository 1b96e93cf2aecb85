"""Runs whose storage is a bucket of a real S3 server: killed, moved elsewhere, searched."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from pyarrow import fs

import segcore
from pipelines import train, tune
from pipelines.mirror import Mirror
from pipelines.params import Params
from pipelines.storage import parse_line, scratch_name
from pipelines.training import failure
from segcore.data.place import Place
from segcore.errors import DataError, OptionError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def planted(root: Path, bucket: str, *secrets: str) -> list[str]:
    """Files below a folder, and objects of a bucket, in which one of the secrets stands."""
    place = Place(bucket)
    contents = {name: place.read(name) for name in place.sizes()}
    contents |= {str(file): file.read_bytes() for file in root.rglob("*") if file.is_file()}
    assert contents
    return [
        name
        for name, content in contents.items()
        if any(secret.encode() in content for secret in secrets)
    ]


def publish(root: Path, bucket: str) -> None:
    """Move the shards of a workspace into the bucket, as the stage prepare does."""
    from segcore.data.published import publish as move

    move(root / "data/shards/painted", Place(bucket) / "shards/painted")


def events(run: Place) -> list[dict[str, object]]:
    found = [name for name in run.sizes() if name.endswith("events.jsonl")]
    lines = run.read(found[0]).split(b"\n") if found else []
    return [event for line in lines if (event := parse_line(line))]


def test_a_killed_run_goes_on_from_the_bucket_on_a_machine_that_has_none_of_it(
    workspace, bucket: str, capfd
) -> None:
    publish(workspace.root, bucket)
    workspace.write(**{"train.epochs": 8})
    train.main()
    undisturbed = workspace.weights

    workspace.write(**{"train.epochs": 8, "cluster.storage": f"{bucket}/runs", "data.root": bucket})
    process = subprocess.Popen(
        workspace.command("train"),
        cwd=workspace.root,
        env=workspace.environment(),
        stdout=(workspace.root / "log").open("wb"),
        stderr=subprocess.STDOUT,
    )
    runs, end = Place(f"{bucket}/runs"), time.monotonic() + 400
    while len(events(runs)) < 3:
        assert process.poll() is None, (workspace.root / "log").read_text()
        assert time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    process.wait()
    last = events(runs)[-1]["step"]
    assert planted(workspace.root, bucket, "Secret0Key1Of2", "AKIAPLANTEDKEY000001") == []

    shutil.rmtree(workspace.root / "outputs")
    capfd.readouterr()
    train.main()
    output = capfd.readouterr().out
    assert f"resuming at step {last}," in output
    assert workspace.weights == undisturbed
    assert runs.sizes() == {}  # a finished run is forgotten
    secrets = ("Secret0Key1Of2", "AKIAPLANTEDKEY000001")
    assert planted(workspace.root, bucket, *secrets) == []
    database = Path(workspace.store.removeprefix("sqlite:///"))
    assert not any(secret.encode() in database.read_bytes() for secret in secrets)
    assert not any(secret in output for secret in secrets)


def test_workers_and_trials_of_ray_work_from_a_bucket(workspace, bucket: str) -> None:
    publish(workspace.root, bucket)
    space = {"train.lr": {"kind": "loguniform", "low": 0.001, "high": 0.01}}
    workspace.write(
        **{"cluster.storage": f"{bucket}/runs", "cluster.num_workers": 1, "train.epochs": 2,
           "tune.space": space}
    )  # fmt: skip
    tune.main()
    best = yaml.safe_load((workspace.root / "outputs/tune/best.yaml").read_text())
    assert best["trials"]["failed"] == 0
    train.main()
    assert segcore.load_package(workspace.root / "outputs/candidate").spec.dataset_name == "painted"
    assert planted(workspace.root, bucket, "Secret0Key1Of2", "AKIAPLANTEDKEY000001") == []


def test_the_shared_version_counts_where_nodes_differ(tmp_path: Path, bucket: str) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    name = scratch_name(bucket)
    first, second = (Mirror.of(bucket, folder / name / "train-1") for folder in (here, there))
    (first.folder / "checkpoints").mkdir(parents=True)
    (first.folder / "checkpoints" / "step-1.pt").write_bytes(b"one")
    first.push("checkpoints")
    (second.folder / "checkpoints").mkdir(parents=True)
    (second.folder / "checkpoints" / "step-2.pt").write_bytes(b"never shared")
    (second.folder / "checkpoints" / "step-1.pt").write_bytes(b"old")
    second.pull("checkpoints", exact=True)
    files = {file.name: file.read_bytes() for file in (second.folder / "checkpoints").iterdir()}
    assert files == {"step-1.pt": b"one"}
    failure.write(first, DataError("sample 7 is broken"))
    assert str(failure.read(second)) == "sample 7 is broken"
    failure.clear(second)
    assert failure.read(first) is None


def test_credentials_in_an_address_are_refused_and_not_repeated(workspace) -> None:
    values = json.loads(json.dumps(workspace.write().dump()))
    values["cluster"]["storage"] = "s3://key:PlantedInAddress@bucket/runs"
    (workspace.root / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(OptionError, match=r"cluster\.storage .*never from an address") as caught:
        Params.load()
    assert "PlantedInAddress" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_one_line(workspace, bucket: str) -> None:
    workspace.write(**{"cluster.storage": "s3://no-such-bucket/runs"})
    with pytest.raises(DataError, match=r"no-such-bucket.* cannot be reached"):
        train.main()
    assert isinstance(Place("s3://no-such-bucket").filesystem, fs.S3FileSystem)
