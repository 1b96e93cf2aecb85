"""A workspace in which the stages train and tune in seconds."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

import segcore
from pipelines.params import Params
from segcore.data.shards import write_shards

REPOSITORY = Path(__file__).parents[3]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
TINY = {
    "data.name": "painted",
    "model.name": "unet",
    "model.options": {"base_channels": 4, "norm": "batch", "dropout": 0.1},
    "loss.name": "cross_entropy",
    "loss.class_weights": "none",
    "train.budget_minutes": 1.0,
    "train.epochs": 4,
    "train.max_minutes": None,
    "train.epoch_steps": None,
    "train.refit": False,
    "train.batch_size": 4,
    "train.lr": 0.002,
    "train.precision": "fp32",
    "train.augment.crop": None,
    "train.progressive": 0.0,
    "train.augment.class_crops": 0.0,
    "train.augment.vflip": 0.0,
    "train.augment.rot90": 0.0,
    "train.augment.scale": [1.0, 1.0],
    "train.augment.color": 0.2,
    "train.overlay_epochs": 2,
    "train.checkpoint_steps": 2,
    "tune.trials": 2,
    "tune.epochs": 2,
    "tracking.system_metrics": False,
}


@pytest.fixture(scope="session")
def fitting_shards(painted_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The painted shards as splits train (16 images) and val (4)."""
    dataset = segcore.open_shards(painted_shards)
    train, val = dataset.split("train"), dataset.split("test")
    path = tmp_path_factory.mktemp("fitting") / "painted"
    rows = {
        "train": [train.read(i) for i in range(16)],
        "val": [val.read(i) for i in range(4)],
    }
    write_shards(path, dataset.meta, splits=rows, encode=lambda row: row)
    return path


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of one MLflow database for all tests; making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


class Workspace:
    """An empty project folder with shards, params, and the stages as processes."""

    def __init__(self, root: Path, shards: Path, store: str) -> None:
        self.root = root
        self.shards = root / "data" / "shards" / "painted"
        shutil.copytree(shards, self.shards)
        self.store = store
        self.write()

    def write(self, **values: object) -> Params:
        """Write params.yaml: tiny values, and those given by dotted key."""
        params = Params.load(REPOSITORY / "params.yaml").override(
            {**TINY, "tracking.uri": self.store, **values}
        )
        (self.root / "params.yaml").write_text(yaml.safe_dump(params.dump()))
        return params

    def command(self, stage: str) -> list[str]:
        return [sys.executable, "-m", f"pipelines.{stage}"]

    def environment(self) -> dict[str, str]:
        """Of a stage's process; it computes as this one does."""
        return {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    @property
    def weights(self) -> bytes:
        return (self.root / "outputs" / "candidate" / "model.safetensors").read_bytes()


@pytest.fixture
def workspace(
    tmp_path: Path, fitting_shards: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> Workspace:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEGCORE_ROOT", raising=False)
    return Workspace(tmp_path, fitting_shards, store)


@dataclass(frozen=True)
class Head:
    """A head node: where jobs are sent, where drivers join, and the environment that may."""

    jobs: str
    address: str
    environment: dict[str, str]


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head node of its own, with token authentication."""
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
    dashboard, gcs = free_port(), free_port()
    ports = [f"--port={gcs}", f"--dashboard-port={dashboard}"]
    start = [*RAY, "start", "--head", "--num-cpus=2", "--block", "--temp-dir=/tmp/ray-job", *ports]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(start, env=environment, stdout=log, stderr=log)
    try:
        while "Ray runtime started" not in (home / "log").read_text() and process.poll() is None:
            time.sleep(0.5)
        yield Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", environment)
    finally:
        below = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(60)
        _, alive = psutil.wait_procs(below, timeout=20)
        for left in alive:
            if left.pid not in before:
                left.kill()
