"""Stage train in one process: what it writes, what it refuses, and that a kill changes nothing."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

import segcore
from pipelines import train
from pipelines.errors import ClusterError, OtherDataError
from pipelines.params import Params
from pipelines.storage import read_lines
from pipelines.tracking import registry
from segcore.data.codec import encode_image, encode_mask
from segcore.data.shards import write_shards
from segcore.errors import DataError, OptionError, SegcoreError

pytestmark = pytest.mark.ray


def events(root: Path) -> list[dict[str, object]]:
    files = list(root.glob("outputs/runs/train-*/events.jsonl"))
    return read_lines(files[0]) if files else []


def wait_for(condition, process: subprocess.Popen[bytes], limit_s: float = 240) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, "the stage ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.02)


def test_train_writes_package_run_and_version(workspace, capsys) -> None:
    params = workspace.write(**{"train.log_gradients": True})
    (workspace.root / "outputs/tune").mkdir(parents=True)
    (workspace.root / "outputs/tune/best.yaml").write_text("overrides: {train.lr: 0.004}\n")
    train.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == [
        "1/4",
        "2/4",
        "3/4",
        "4/4",
    ]
    package = workspace.root / "outputs/candidate"
    predictor = segcore.load_package(package)
    assert predictor.spec.dataset_digest == segcore.open_shards(workspace.shards).digest
    assert (package / "overlay.png").is_file()
    version = registry.Registry(params).get("segcore-painted", "candidate")
    assert version is not None
    assert version.package_digest == segcore.package_digest(package)
    client = MlflowClient(workspace.store)
    run = client.get_run(version.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "unet cross_entropy 4 epochs")
    assert run.data.tags["dvc_stage"] == "train"
    assert run.data.params["train.lr"] == "0.004"
    assert run.data.tags["tuned.train.lr"] == "0.004"
    best = max(client.get_metric_history(run.info.run_id, "val/miou"), key=lambda m: m.value)
    assert run.data.tags["best_epoch"] == str(best.step)
    assert predictor.spec.metrics["miou"] == best.value
    assert len(client.get_metric_history(run.info.run_id, "val/iou/disk")) == 4
    pictures = [entry.path for entry in client.list_artifacts(run.info.run_id, "overlays")]
    assert pictures == ["overlays/epoch_0002.png", "overlays/epoch_0004.png"]
    tables = [entry.path for entry in client.list_artifacts(run.info.run_id, "gradients")]
    assert tables == [
        f"gradients/epoch_000{n}.{end}" for n in range(1, 5) for end in ("json", "png")
    ]
    table = json.loads(Path(client.download_artifacts(run.info.run_id, tables[-2])).read_text())
    elements = [sum(layer["counts"]) + layer["zeros"] for layer in table["layers"].values()]
    assert sum(elements) == sum(p.numel() for p in predictor.model.parameters())
    assert not list(workspace.root.glob("outputs/runs/train-*"))  # the next run starts fresh


def test_driver_killed_and_run_again_ends_with_the_same_weights(workspace, capsys) -> None:
    workspace.write(**{"train.epochs": 8})
    train.main()
    undisturbed = workspace.weights
    (workspace.root / "outputs/candidate/model.safetensors").unlink()
    command, environment = workspace.command("train"), workspace.environment()
    process = subprocess.Popen(command, cwd=workspace.root, env=environment)
    wait_for(lambda: len(events(workspace.root)) >= 3, process)
    process.kill()
    process.wait()
    capsys.readouterr()
    train.main()
    assert "resuming at step" in capsys.readouterr().out
    assert workspace.weights == undisturbed


def test_terminated_stage_closes_its_run_and_says_143(workspace) -> None:
    workspace.write(**{"train.epochs": 200})
    command, environment = workspace.command("train"), workspace.environment()
    process = subprocess.Popen(command, cwd=workspace.root, env=environment)
    wait_for(lambda: list(workspace.root.glob("outputs/runs/train-*/run.json")), process)
    wait_for(lambda: len(events(workspace.root)) >= 1, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    facts = next(workspace.root.glob("outputs/runs/train-*/run.json"))
    run_id = json.loads(facts.read_text())["run_id"]
    assert MlflowClient(workspace.store).get_run(run_id).info.status == "KILLED"
    assert not (workspace.root / "outputs/candidate").exists()


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"model.options": {"num_classes": 7}}, OptionError, "num_classes is 7.*painted has 3"),
        ({"model.name": "unett"}, SegcoreError, "did you mean 'unet'"),
        ({"model.options": {"wide": 1}}, OptionError, "no option 'wide'"),
        (
            {"model.name": "unet3d", "model.options": {}},
            OptionError,
            "unet3d, which takes volumes .* painted has images",
        ),
        ({"loss.name": "crossentropy"}, SegcoreError, "cross_entropy"),
        ({"cluster.num_workers": 3}, OptionError, "batch_size 4 cannot be shared out .* take 6"),
        ({"data.name": "camvid"}, DataError, "run the prepare stage"),
        ({"tracking.uri": "http://127.0.0.1:9"}, SegcoreError, "tracking.uri"),
        ({"cluster.num_workers": 4096, "train.batch_size": 4096}, ClusterError, "need 4096 CPUs"),
    ],
)
def test_what_cannot_work_is_refused_at_once(workspace, values, error, message) -> None:
    workspace.write(**values)
    with pytest.raises(error, match=message):
        train.main()
    assert not (workspace.root / "outputs/candidate").exists()


def test_images_smaller_than_the_model_admits_are_refused(workspace) -> None:
    dataset = segcore.open_shards(workspace.shards)
    pixels = np.zeros((24, 40, 3), np.uint8)
    small = replace(
        dataset.split("train").read(0),
        image=encode_image(pixels, "png"),
        mask=encode_mask(pixels[..., 0]),
        height=24,
        width=40,
    )
    rows = {"train": [small], "val": [small]}
    write_shards(workspace.shards, dataset.meta, splits=rows, encode=lambda row: row)
    with pytest.raises(OptionError, match=r"unet, .* at least 32 pixels .* smallest side is 24"):
        train.main()


def test_another_folder_of_the_same_name_is_refused_before_training(workspace, tmp_path) -> None:
    one, other = tmp_path / "one/painted", tmp_path / "other/painted"
    home = workspace.root / "data/shards/folder"
    shutil.copytree(workspace.shards, home)
    own = {"data.name": "folder", "train.epochs": 1}
    params = workspace.write(**own, **{"data.path": str(one)})
    train.main()
    version = registry.Registry(params).get("segcore-painted", "candidate")
    package = workspace.root / "outputs/candidate"
    assert version.package_digest == segcore.package_digest(package)
    dataset = segcore.open_shards(home)
    rows = {name: [dataset.split(name).read(i) for i in range(4)] for name in ("train", "val")}
    write_shards(home, dataset.meta, splits=rows, encode=lambda row: row)
    workspace.write(**own, **{"data.path": str(other)})
    with pytest.raises(OtherDataError, match=f"{one}, this one is of {other}"):
        train.main()
    workspace.write(**own, **{"data.path": str(one)})  # grown, shrunk or corrected: the same data
    train.main()


def test_an_error_in_training_is_one_line_and_one_process_needs_no_ray(workspace) -> None:
    fixed = {"train.optimizer": "sgd", "train.warmup_fraction": 0.0, "train.schedule": "constant"}
    workspace.write(**{"train.lr": 1e30, **fixed})
    environment = {**workspace.environment(), "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(
        workspace.command("train"),
        cwd=workspace.root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "is not finite by step" in errors[0]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = [line.rpartition("|")[2].strip() for line in lines]
    assert not [name for name in imported if name.partition(".")[0] == "ray"]
    # MLflow, which the first steps can do without, does not hold up what they need.
    assert imported.index("torchvision") < imported.index("mlflow")


def test_server_lost_at_the_end_leaves_the_package_and_says_so(
    workspace, monkeypatch, capsys
) -> None:
    params = workspace.write()

    class Away(registry.Registry):
        def __init__(self, params: Params) -> None:
            super().__init__(params.override({"tracking.uri": "http://127.0.0.1:9"}))

    monkeypatch.setattr(registry, "Registry", Away)
    train.main()
    assert "no MLflow server answers" in capsys.readouterr().err
    monkeypatch.undo()
    found = registry.Registry(params).ensure_registered(workspace.root / "outputs/candidate")
    assert found.package_digest == segcore.package_digest(workspace.root / "outputs/candidate")


def test_overlays_do_not_change_what_training_draws(workspace) -> None:
    params = workspace.write(**{"train.epochs": 2, "train.overlay_epochs": 1})

    def final(worker) -> dict[str, object]:
        for epoch in worker(params, workspace.shards, workspace.root, None):
            weights = epoch.weights()
        return weights

    plain, drawn = final(train.fit_worker), final(train.train_worker)
    assert all((plain[key] == drawn[key]).all() for key in plain)


def test_stages_are_imported_without_ray_or_mlflow() -> None:
    heavy = "{'ray', 'mlflow', 'torch'} & {*sys.modules}"
    code = f"import sys, pipelines.train, pipelines.tune; print({heavy})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
