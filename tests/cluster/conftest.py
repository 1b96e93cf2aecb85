"""Two Ray nodes in network namespaces, and a project in a folder that both see."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.params import Params
from pipelines.storage import read_lines
from pipelines.training.run_state import EVENTS
from tests.cluster.nodes import Cluster, why_not
from tests.pipelines.conftest import painted_shards  # noqa: F401
from tests.pipelines.training.conftest import Workspace, fitting_shards  # noqa: F401

# Batch statistics and dropout masks are a worker's own: without them two workers are one.
EXACT = {
    "model.options": {"base_channels": 4, "norm": None, "dropout": 0.0},
    "train.optimizer": "sgd",
    "train.lr": 0.05,
    "train.overlay_epochs": 1000,
}


LIMIT_S = 1500.0  # generous: a busy machine takes ten times as long as a quiet one


class Project(Workspace):
    """A workspace whose stages run as drivers on the head of a cluster."""

    cluster: Cluster

    def __init__(self, root: Path, shards: Path, store: str) -> None:
        super().__init__(root, shards, store)
        self.drivers: list[subprocess.Popen[bytes]] = []

    def use(self, cluster: Cluster, **values: object) -> Params:
        """Write params for the cluster, which trains by two workers unless told otherwise."""
        cluster.repair()
        self.cluster = cluster
        return self.write(
            **{"cluster.address": cluster.address, "cluster.num_workers": 2, **EXACT, **values}
        )

    @property
    def log(self) -> Path:
        return self.root / "stage.log"

    def start(self, stage: str) -> subprocess.Popen[bytes]:
        """The driver of a stage, on the head."""
        self.drivers.append(self.cluster.run(self.command(stage), cwd=self.root, log=self.log))
        return self.drivers[-1]

    def run(self, stage: str, limit_s: float = LIMIT_S) -> str:
        """Run a stage to its end; what it printed in all."""
        assert self.start(stage).wait(limit_s) == 0, self.log.read_text()
        return self.log.read_text()

    def events(self) -> list[dict[str, object]]:
        """Reports of the training run that is unfinished."""
        files = list(self.root.glob("outputs/runs/train-*/" + EVENTS))
        return read_lines(files[0]) if files else []

    def wait(
        self, process: subprocess.Popen[bytes], ready: Callable[[], bool], limit_s: float = LIMIT_S
    ) -> None:
        """Wait for something to happen while a stage runs."""
        end = time.monotonic() + limit_s
        while not ready():
            assert process.poll() is None, f"the stage ended too early:\n{self.log.read_text()}"
            assert time.monotonic() < end, f"waited in vain:\n{self.log.read_text()}"
            time.sleep(0.02)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and another node; a test that kills one starts it again."""
    if reason := why_not():
        pytest.skip(reason)
    made = Cluster(tmp_path_factory.mktemp("nodes"))
    try:
        made.repair()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of one MLflow database for all tests."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def project(tmp_path: Path, fitting_shards: Path, ledger: str) -> Iterator[Project]:  # noqa: F811
    made = Project(tmp_path, fitting_shards, ledger)
    yield made
    for process in made.drivers:
        process.kill()
        process.wait()
