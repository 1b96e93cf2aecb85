"""A real MLflow server that goes away in mid-run: nothing is lost, nobody waits."""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress

import numpy as np
import pytest

from pipelines.params import Params
from pipelines.tracking import run as tracking

pytestmark = pytest.mark.ray


class Wire:
    """A TCP connection to a server that can be cut and mended."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = free_port()
        self._open: list[socket.socket] = []
        self.mend()

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._open:
            end.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                here, _ = listener.accept()
                there = socket.create_connection(("127.0.0.1", self.target))
                self._open += [here, there]
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    """A real MLflow server behind a wire that tests may cut."""
    home, port = tmp_path_factory.mktemp("server"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{home}/s.db"]
    artifacts = ["--artifacts-destination", str(home / "artifacts")]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *store, *artifacts],
            stdout=log,
            stderr=log,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 240
        while time.monotonic() < end and process.poll() is None:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.2)
        yield Wire(port)
    finally:
        process.terminate()
        process.wait(30)


def test_outage_loses_nothing_and_is_told(
    project: Params,
    server: Wire,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.tracking.buffer.CLOSE_S", 1.0)
    remote = project.override({"tracking.uri": f"http://127.0.0.1:{server.port}"})
    with tracking.open_run("train", remote) as run:
        run.log_metrics({"a": 0.0}, 0)
        server.cut()
        start = time.monotonic()
        for step in range(1, 6):
            run.log_metrics({"a": float(step)}, step)
        run.log_image(np.zeros((4, 6, 3), np.uint8), "overlays/a.png")
        assert time.monotonic() - start < 1.0  # training does not wait for the server
    told = capsys.readouterr().err
    assert run.id in told
    assert "sent by the next stage" in told
    server.mend()
    with tracking.open_run("evaluate", remote) as later:
        pass
    client = later.connection.client
    history = client.get_metric_history(run.id, "a")
    assert sorted(metric.step for metric in history) == [0, 1, 2, 3, 4, 5]
    assert client.get_run(run.id).info.status == "FINISHED"
    assert [entry.path for entry in client.list_artifacts(run.id, "overlays")] == ["overlays/a.png"]
