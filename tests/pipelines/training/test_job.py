"""The train stage as a submitted Ray job: the commands of the README, with token authentication."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

import segcore

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
REPOSITORY = Path(__file__).parents[3]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
EXCLUDES = ["/data", "/outputs", "/mlruns", "/mlflow.db", "/.venv", "/.git", "/.dvc"]


def test_submitted_job_trains_where_the_data_is(workspace, head) -> None:
    address, environment = head.jobs, head.environment
    workspace.write(**{"train.epochs": 2})
    upload = workspace.root / "repository"
    upload.mkdir()
    for name in ("segcore", "pipelines"):
        shutil.copytree(
            REPOSITORY / name, upload / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(workspace.root / "params.yaml", upload)
    (upload / "data").mkdir()
    (upload / "data" / "huge").write_bytes(b"0" * 2**20)
    runtime = {"excludes": EXCLUDES, "env_vars": {"SEGCORE_ROOT": str(workspace.root)}}
    submit = [*RAY, "job", "submit", "--address", address, "--working-dir", str(upload)]
    command = ["--runtime-env-json", json.dumps(runtime), "--", sys.executable, "-m"]
    for _ in range(60):
        done = subprocess.run(
            [*submit, *command, "pipelines.train"], env=environment, capture_output=True, text=True
        )
        if done.returncode == 0 or "Connection" not in done.stderr + done.stdout:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 2/2" in done.stdout
    assert "registered segcore-painted" in done.stdout
    predictor = segcore.load_package(workspace.root / "outputs" / "candidate")
    assert predictor.spec.dataset_name == "painted"
    client = MlflowClient(workspace.store)
    version = client.get_model_version_by_alias("segcore-painted", "candidate")
    assert version.tags["package_digest"] == predictor.digest
