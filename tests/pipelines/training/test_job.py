"""The train stage as a submitted Ray job: the commands of the README, with token authentication."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

import segcore

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
REPOSITORY = Path(__file__).parents[3]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
EXCLUDES = ["/data", "/outputs", "/mlruns", "/mlflow.db", "/.venv", "/.git", "/.dvc"]


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A head node of its own: its job address, and the environment that reaches it."""
    home = tmp_path_factory.mktemp("head")
    token = home / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
    before = {process.pid for process in psutil.process_iter()}
    dashboard = free_port()
    ports = [f"--port={free_port()}", f"--dashboard-port={dashboard}"]
    start = [*RAY, "start", "--head", "--num-cpus=2", "--block", "--temp-dir=/tmp/ray-job", *ports]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(start, env=environment, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:
        below = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(60)
        _, alive = psutil.wait_procs(below, timeout=20)
        for left in alive:
            if left.pid not in before:
                left.kill()


def test_submitted_job_trains_where_the_data_is(
    workspace, head: tuple[str, dict[str, str]]
) -> None:
    address, environment = head
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
