"""A team's MLflow server, real, on PostgreSQL: many writers, outages, one version a package.

`deploy/mlflow_server.sh` starts it, as docs/mlflow-server.md tells people to.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.params import Params
from pipelines.tracking import run as tracking
from pipelines.tracking.connection import connect
from pipelines.tracking.history import Evidence
from pipelines.tracking.registry import Registry

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]

SCRIPT = Path(__file__).parents[2] / "deploy" / "mlflow_server.sh"
PROCESSES, STEPS = 16, 25
WRITER = """
import multiprocessing, sys
from pathlib import Path
import mlflow, sqlalchemy
from pipelines.params import Params
from pipelines.tracking.connection import connect
from pipelines.tracking.run import Run, start_or_resume

def write(uri, folder, number, start):
    params = Params.load(sys.argv[1]).override({"tracking.uri": uri})
    start.wait()
    connection = connect(params.tracking)
    name = f"trial {number}"
    run = Run(lambda: (connection, start_or_resume(connection, name, {}, None)), Path(folder))
    run.log_params({"number": number})
    for step in range(int(sys.argv[4])):
        run.log_metrics({"loss": number + step / 1000, "miou": step}, step)
    run.close("FINISHED")
    (Path(folder).parent / f"run-{run.id}").touch()

if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    start = fork.Event()
    count = int(sys.argv[5])
    args = [(sys.argv[2], sys.argv[3], number, start) for number in range(count)]
    processes = [fork.Process(target=write, args=one) for one in args]
    for process in processes: process.start()
    start.set()
    for process in processes: process.join()
    sys.exit(max(process.exitcode for process in processes))
"""


class Server:
    """The script's processes. `stop` lets the server hang, `kill` ends it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with closing(socket.create_server(("127.0.0.1", 0))) as probe:
            self.port = int(probe.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        environment = {**os.environ, "WORKERS": "1", "PYTHON": sys.executable}
        with (self.folder / "log").open("ab") as log:
            command = ["bash", str(SCRIPT), str(self.folder / "data"), str(self.port)]
            self.process = psutil.Popen(command, stdout=log, stderr=log, env=environment)
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "log").read_text()[-3000:]
            time.sleep(0.3)

    def _answers(self) -> bool:
        with suppress(OSError):
            urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
            return True
        return False

    def mlflow(self) -> list[psutil.Process]:
        """Processes of the server, without those of the database."""
        below = self.process.children(recursive=True)
        return [process for process in below if "postgres" not in process.name()]

    def signal(self, number: int) -> None:
        for process in self.mlflow():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill(self) -> None:
        """Kill the server; the script then ends the database."""
        self.signal(signal.SIGKILL)
        self.process.wait(180)

    def end(self) -> None:
        below = self.process.children(recursive=True)
        self.process.terminate()
        self.process.wait(180)
        assert not psutil.wait_procs(below, timeout=10)[1]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with PostgreSQL, in a folder that the database's user can reach."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    if importlib.util.find_spec("psycopg2") is None:
        pytest.skip("psycopg2 is not installed: pip install psycopg2-binary")
    folder = Path(tempfile.mkdtemp(prefix="segcore-server-"))
    folder.chmod(0o755)
    found = Server(folder)
    try:
        yield found
    finally:
        found.end()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def remote(project: Params, server: Server, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Params that name the server, with waits of seconds instead of tens of them."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    monkeypatch.setattr("pipelines.tracking.buffer.RETRY_S", 0.5)
    return project.override({"tracking.uri": server.uri})


def test_runs_artifacts_models_and_history_are_kept(
    remote: Params, good_package: Path, bad_package: Path
) -> None:
    with tracking.open_run("train", remote) as run:
        run.log_metrics({"a": 1.0}, 1)
        run.log_image(np.zeros((4, 6, 3), np.uint8), "overlays/a.png")
        models = Registry(remote)
        first = models.register(bad_package, run.id)
    client = run.connection.client
    assert client.get_run(run.id).info.artifact_uri.startswith("mlflow-artifacts:")
    assert [entry.path for entry in client.list_artifacts(run.id, "overlays")] == ["overlays/a.png"]
    folder = models.download(first)
    weights = "model.safetensors"
    assert (folder / weights).read_bytes() == (bad_package / weights).read_bytes()

    # The same package by several at once is one version.
    found = []
    together = [
        threading.Thread(target=lambda: found.append(Registry(remote).register(good_package)))
        for _ in range(3)
    ]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    assert len({version.version for version in found}) == 1, found
    there = client.search_model_versions("name = 'segcore-painted'")
    assert len({entry.tags["package_digest"] for entry in there}) == len(there) == 2

    models.promote(first, Evidence("first", run.id, {"miou": 0.5}))
    models.promote(found[0], Evidence("better"))
    assert models.restore("segcore-painted", first.version) == first
    moves = [move for move in models.history("segcore-painted").moves() if move.alias == "champion"]
    ways = [(move.previous, move.version) for move in moves]
    other = found[0].version
    assert ways == [("", first.version), (first.version, other), (other, first.version)]


@pytest.mark.parametrize("store", ["server", "fresh sqlite"])
def test_sixteen_processes_lose_no_point(
    request: pytest.FixtureRequest, project: Params, tmp_path: Path, store: str
) -> None:
    uri = project.tracking.uri
    if store == "server":
        uri = request.getfixturevalue("server").uri
    (tmp_path / "writer.py").write_text(WRITER)
    root = Path(__file__).parents[2]
    numbers = [str(STEPS), str(PROCESSES)]
    arguments = [str(root / "params.yaml"), uri, str(tmp_path / "buffers"), *numbers]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "writer.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "database is locked" not in done.stderr
    runs = [path.name.removeprefix("run-") for path in tmp_path.glob("run-*")]
    assert len(runs) == PROCESSES
    client = connect(project.override({"tracking.uri": uri}).tracking).client
    numbers_seen = set()
    for run_id in runs:
        run = client.get_run(run_id)
        number = int(run.data.params["number"])
        numbers_seen.add(number)
        assert run.info.status == "FINISHED"
        history = client.get_metric_history(run_id, "loss")
        points = sorted((metric.step, metric.value) for metric in history)
        assert points == [(step, number + step / 1000) for step in range(STEPS)]
        assert len(client.get_metric_history(run_id, "miou")) == STEPS
    assert numbers_seen == set(range(PROCESSES))
    assert not list((tmp_path / "buffers").iterdir())


def steps(run: tracking.Run) -> list[int]:
    history = run.connection.client.get_metric_history(run.id, "a")
    return sorted(metric.step for metric in history)


def log(run: tracking.Run, numbers: range) -> float:
    """Log a point for each step; returns how long the longest call took."""
    longest = 0.0
    for step in numbers:
        start = time.monotonic()
        run.log_metrics({"a": float(step)}, step)
        longest = max(longest, time.monotonic() - start)
        time.sleep(0.05)
    return longest


def test_a_server_that_hangs_does_not_stop_training(
    remote: Params, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking.open_run("train", remote) as run:
        log(run, range(3))
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
        server.signal(signal.SIGSTOP)
        try:
            assert log(run, range(3, 60)) < 1.0
            time.sleep(5)  # requests run into their timeout meanwhile
            assert run._buffer.flush() > 0
        finally:
            server.signal(signal.SIGCONT)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        assert log(run, range(60, 63)) < 1.0
    assert steps(run) == list(range(63))
    assert run.connection.client.get_run(run.id).info.status == "FINISHED"


def test_points_of_a_killed_server_reach_it_by_sync(
    remote: Params,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pipelines.tracking.buffer.CLOSE_S", 1.0)
    with tracking.open_run("train", remote) as run:
        log(run, range(3))
        server.kill()
        assert log(run, range(3, 20)) < 1.0
        run.log_image(np.zeros((4, 6, 3), np.uint8), "overlays/b.png")
    assert "segcore sync" in capsys.readouterr().err
    Path("params.yaml").write_text(yaml.safe_dump(remote.dump()))
    storage = Path(remote.cluster.storage)
    refused = CliRunner().invoke(app, ["sync"])
    assert refused.exit_code == 1
    assert "no MLflow server answers" in refused.output
    server.start()
    result = CliRunner().invoke(app, ["sync"])
    assert result.exit_code == 0, result.output
    assert f"run {run.id} is complete" in result.output
    assert not list((storage / tracking.BUFFERS).iterdir())
    assert steps(run) == list(range(20))
    client = run.connection.client
    assert client.get_run(run.id).info.status == "FINISHED"
    assert [entry.path for entry in client.list_artifacts(run.id, "overlays")] == ["overlays/b.png"]
    assert "nothing waits" in CliRunner().invoke(app, ["sync"]).output
