"""MLflow runs and registered models in a real store, and what is refused before work."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import segcore
from pipelines.errors import OtherDataError, TrackingError
from pipelines.params import Params
from pipelines.tracking import connection, names, registry
from pipelines.tracking import run as tracking
from pipelines.tracking.buffer import Buffer
from pipelines.tracking.history import Evidence
from pipelines.tracking.version import Version
from segcore.package import read_spec

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one store for all tests; making a database takes seconds."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def project(project: Params, home: Path) -> Params:
    return project.override({"tracking.uri": f"sqlite:///{home}/mlflow.db"})


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "./mlruns", "file:mlruns"])
def test_file_store_is_refused_with_the_way_out(uri: str, project: Params) -> None:
    with pytest.raises(TrackingError, match=r"sqlite:///mlflow\.db"):
        connection.connect(project.override({"tracking.uri": uri}).tracking)


def test_relative_sqlite_path_is_absolute_from_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGCORE_ROOT", str(tmp_path))
    assert connection.store_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert connection.store_uri("https://host:5000") == "https://host:5000"


def test_unreachable_server_is_one_quick_error(project: Params) -> None:
    start = time.monotonic()
    with (
        pytest.raises(TrackingError, match=r"sqlite:///mlflow\.db"),
        tracking.open_run("train", project.override({"tracking.uri": "http://127.0.0.1:9"})),
    ):
        pytest.fail("the block must not start")
    assert time.monotonic() - start < 10


def test_database_that_is_none_is_named(project: Params, tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_bytes(b"this is no database, but it is long enough" * 100)
    broken = project.override({"tracking.uri": f"sqlite:///{tmp_path}/broken.db"})
    with pytest.raises(TrackingError, match=r"broken\.db"):
        connection.connect(broken.tracking)


def test_run_holds_everything_and_ends_finished(project: Params, tmp_path: Path) -> None:
    with tracking.open_run("train", project.override({"tracking.system_metrics": True})) as run:
        for step in (1, 2):
            run.log_metrics({"val/miou": step / 4, "iou/Sign(a)": 0.5, "iou/none": np.nan}, step)
        run.log_image(np.zeros((4, 6, 3), np.uint8), "overlays/a.png")
        run.log_dataset("painted", "ab" * 32, path=tmp_path, rows=7)
        time.sleep(1.5)
    client = run.connection.client
    stored = client.get_run(run.id)
    assert stored.info.status == "FINISHED"
    assert [m.value for m in client.get_metric_history(run.id, "val/miou")] == [0.25, 0.5]
    assert stored.data.metrics["iou/Sign_a_"] == 0.5
    assert "iou/none" not in stored.data.metrics
    assert "system/cpu_utilization_percentage" in stored.data.metrics
    assert stored.data.params["train.lr"] == str(project.train.lr)
    assert stored.data.tags["dvc_stage"] == "train"
    assert stored.inputs.dataset_inputs[0].dataset.digest == ("ab" * 32)[:36]
    assert [entry.path for entry in client.list_artifacts(run.id, "overlays")] == ["overlays/a.png"]
    assert not list((tmp_path / "runs" / tracking.BUFFERS).iterdir())


@pytest.mark.parametrize(
    ("error", "status"),
    [(SystemExit(143), "KILLED"), (KeyboardInterrupt(), "KILLED"), (ValueError("x"), "FAILED")],
)
def test_run_ends_in_its_true_state(project: Params, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), tracking.open_run("train", project) as run:
        raise error
    assert run.connection.client.get_run(run.id).info.status == status


def test_experiment_opens_on_training_runs_unless_a_person_chose_otherwise(
    project: Params,
) -> None:
    kind = "mlflow.experimentKind"
    for name, before, after in (
        ("fresh", None, "custom_model_development"),
        ("old", {}, "custom_model_development"),
        ("chosen", {kind: "genai_development"}, "genai_development"),
    ):
        settings = project.override({"tracking.experiment": name}).tracking
        if before is not None:
            store = connection.connect(project.tracking)
            store.client.create_experiment(name, tags=before)
        found = connection.connect(settings)
        assert found.client.get_experiment(found.experiment_id).tags[kind] == after


def test_runs_are_named_by_what_they_are(project: Params) -> None:
    settled = {"model.name": "linknet", "loss.name": "cross_entropy", "tune.trials": 3}
    project = project.override({**settled, "train.epochs": 12, "train.max_minutes": None})
    changed = project.override({"train.max_minutes": 8.0, "loss.name": "dice_ce"})
    assert names.train_name(project) == "linknet cross_entropy 12 epochs"
    assert names.train_name(changed) == "linknet dice_ce 8 min"
    terms = [{"name": "dice", "weight": 1}, {"name": "focal", "weight": 1}]
    summed = project.override({"loss.terms": terms, "train.epochs": 1})
    assert names.train_name(summed) == "linknet dice + focal 1 epoch"
    assert names.tune_name(project) == "search of 3 trials: linknet"
    models = {"model.name": {"kind": "choice", "values": ["unet", "enet"]}}
    searched = project.override({"tune.space": models, "tune.trials": 1})
    assert names.tune_name(searched) == "search of 1 trial: unet, enet"
    values = {"loss.name": "dice", "train.lr": 0.00123456}
    assert names.trial_name(values) == "loss.name=dice train.lr=0.00123"
    assert len(names.trial_name({"model.options": "x" * 999})) == names.LONGEST_NAME


def test_interrupted_run_goes_on_and_a_lost_one_starts_anew(project: Params) -> None:
    with tracking.open_run("train", project) as first:
        pass
    with tracking.open_run("train", project, resume_id=first.id) as again:
        assert again.connection.client.get_run(first.id).info.status == "RUNNING"
    with tracking.open_run("train", project, resume_id="0" * 32) as other:
        pass
    assert again.id == first.id != other.id


def test_a_run_that_is_put_off_loses_nothing(project: Params) -> None:
    with tracking.open_run("train", project, later=True) as run:
        run.log_metrics({"loss": 1.0}, 1)
        time.sleep(0.2)
        assert not run.begun
        run.begin()
        run.log_metrics({"loss": 0.5}, 2)
        client, run_id = run.connection.client, run.id
    history = client.get_metric_history(run_id, "loss")
    assert [(entry.step, entry.value) for entry in history] == [(1, 1.0), (2, 0.5)]
    with tracking.open_run("train", project, later=True) as never_begun:
        never_begun.set_tags({"quick": "yes"})
    assert client.get_run(never_begun.id).data.tags["quick"] == "yes"
    assert client.get_run(never_begun.id).info.status == "FINISHED"


def test_children_are_nested(project: Params) -> None:
    with tracking.open_run("tune", project) as run:
        child = run.child("trial", {"train.lr": 0.1}, {"trial": "a1"}, None)
        child.log_metrics({"val/miou": 0.5}, 1)
        child.close("KILLED")
    stored = run.connection.client.get_run(child.id)
    assert stored.data.tags["mlflow.parentRunId"] == run.id
    assert stored.data.tags["trial"] == "a1"
    assert (stored.info.status, stored.data.params) == ("KILLED", {"train.lr": "0.1"})


def test_replay_makes_no_point_twice(project: Params, tmp_path: Path) -> None:
    with tracking.open_run("train", project) as run:
        buffer = Buffer(run.connection.client, run.id, tmp_path / "buffer")
        for step in range(5):
            buffer.metrics({"a": step}, step, 1_700_000_000_000 + step)
        assert buffer.flush() == 0
        (tmp_path / "buffer" / "sent").unlink()
        again = Buffer(run.connection.client, run.id, tmp_path / "buffer")
        assert again.close() == 0
        buffer.close()
    history = run.connection.client.get_metric_history(run.id, "a")
    assert [metric.value for metric in history] == [0, 1, 2, 3, 4]


def test_same_package_is_one_version(
    project: Params, good_package: Path, bad_package: Path
) -> None:
    models = registry.Registry(project)
    first = models.ensure_registered(good_package)
    other = models.register(bad_package, alias=None)
    assert models.ensure_registered(good_package) == first
    assert (first.version, other.version) == ("1", "2")
    assert models.get("segcore-painted", "candidate") == first
    models.promote(other, Evidence("better"))
    assert models.resolve("models:/segcore-painted@champion") == other
    assert models.resolve("models:/segcore-painted/1") == first
    assert models.get("segcore-painted", "none") is None
    with pytest.raises(TrackingError, match="segcore-painted@none"):
        models.resolve("models:/segcore-painted@none")
    folder = models.download(first)
    assert (folder / "model.json").read_bytes() == (good_package / "model.json").read_bytes()
    assert models.download(first) == folder


def of_data(package: Path, to: Path, *, source: str, shards: str, **values: object) -> Path:
    """A package as train writes it of a folder of the user's; `shards` is their digest."""
    spec = replace(read_spec(package), dataset_name="cells", dataset_digest=shards, **values)
    predictor = segcore.load_package(package)
    spec = replace(spec, extra={**spec.extra, "data_source": source} if source else {})
    return segcore.save_package(to, predictor.model, spec)


def test_one_name_stands_for_one_folder_of_data(
    project: Params, good_package: Path, tmp_path: Path
) -> None:
    models = registry.Registry(project)

    def add(number: int, alias: str | None = "candidate", **facts: object) -> Version:
        return models.register(of_data(good_package, tmp_path / f"p{number}", **facts), None, alias)

    add(1, "champion", source="", shards="0")  # of an older segcore
    add(2, "champion", source="/a/cells", shards="1")
    grown = add(3, source="/a/cells", shards="2")
    moved = add(4, source="/moved/cells", shards="1")
    assert (grown.name, moved.name) == ("segcore-cells", "segcore-cells")
    words = r"segcore-cells .* version 2 .* /a/cells, .* /b/cells\. .* data\.options\.title"
    with pytest.raises(OtherDataError, match=words):
        add(5, source="/b/cells", shards="3")
    with pytest.raises(OtherDataError, match=r"ground, disk, square, .* ground, disk, star\."):
        add(6, source="/a/cells", shards="4", classes=("ground", "disk", "star"))
    assert models.get("segcore-cells", "candidate") == moved
    # What stands for the model is known before training, from its description alone.
    with pytest.raises(OtherDataError):
        models.check_data(read_spec(tmp_path / "p5"))


def test_registered_model_loads_without_the_pipelines(
    project: Params, good_package: Path, home: Path, tmp_path: Path
) -> None:
    version = registry.Registry(project).ensure_registered(good_package)
    code = f"""
import json, sys, mlflow, numpy as np
mlflow.set_tracking_uri({project.tracking.uri!r})
model = mlflow.pyfunc.load_model("models:/{version.name}@candidate")
maps = model.predict(np.zeros((2, 50, 70, 3), np.uint8))
pickles = [str(p) for p in __import__("pathlib").Path({str(home)!r}).rglob("*.pkl")]
known = [m for m in sys.modules if m.split(".")[0] == "pipelines"]
kind = str(model.metadata.signature.inputs)
print(json.dumps([maps.shape, str(maps.dtype), known, pickles, kind]))
"""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    away = tmp_path / "away"
    away.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=away, env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shape, kind, modules, pickles, signature = json.loads(done.stdout.splitlines()[-1])
    assert (shape, kind, modules, pickles) == ([2, 50, 70], "int64", [], [])
    assert "uint8" in signature
    assert not list((home / "mlruns").rglob("__pycache__"))
