"""A folder that only one node of a cluster has is refused in seconds, naming the setting."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
HIDING = 'mount -t tmpfs none "$0" && exec "$@"'

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture
def blind_node(workspace, head) -> Iterator[Path]:
    """A second node of the head's cluster that finds another, empty folder in place of one."""
    hidden = workspace.root / "hidden"
    hidden.mkdir()
    probe = subprocess.run(
        ["unshare", "-m", "sh", "-c", HIDING, str(hidden), "true"], capture_output=True, text=True
    )
    if probe.returncode:
        pytest.skip(f"no mount namespace is permitted: {probe.stderr.strip()}")
    start = [*RAY, "start", f"--address={head.address}", "--num-cpus=1", "--block"]
    log = workspace.root / "node.log"
    with log.open("wb") as output:
        node = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", HIDING, str(hidden), *start],
            env=head.environment, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None, log.read_text()
            time.sleep(0.5)
        yield hidden
    finally:
        below = psutil.Process(node.pid).children(recursive=True)
        node.terminate()
        node.wait(60)
        for left in psutil.wait_procs(below, timeout=20)[1]:
            left.kill()


def test_a_folder_that_a_node_does_not_see_is_refused(workspace, head, blind_node: Path) -> None:
    environment = {**workspace.environment(), **head.environment, "OMP_NUM_THREADS": "1"}
    cluster = {"cluster.address": head.address, "cluster.num_workers": 2}
    workspace.write(**cluster, **{"cluster.storage": str(blind_node / "runs")})
    done = subprocess.run(
        workspace.command("train"), env=environment, cwd=workspace.root, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: cluster.storage is {blind_node / 'runs'}, which node ")
    assert "Traceback" not in done.stderr

    os.rename(workspace.shards, blind_node / "painted")
    os.symlink(blind_node / "painted", workspace.shards)
    workspace.write(**cluster, **{"cluster.storage": str(workspace.root / "runs")})
    done = subprocess.run(
        workspace.command("train"), env=environment, cwd=workspace.root, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "error: data.root is " in done.stderr
    assert not list(blind_node.glob("*/.seen-*"))
