"""docs/cluster.md, block by block, on two machines and a laptop.

A machine is a network namespace with process ids of its own, so that `ray stop` ends its own
processes only; a terminal on it is a shell that lives as long as a person's.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipelines.params.file import read_yaml
from tests.cluster.nodes import SETTINGS, Network, why_not
from tests.pipelines.test_pipeline import TINY, clone, environment, set_params

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]
PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
BLOCK = re.compile(r"^```(?:yaml)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MACHINE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
LIMIT_S = 900.0


class Terminal:
    """A shell that ends at the first command that fails.

    Args:
        where: prefix of its command: the machine.
        folder: in which it starts.
        variables: its environment.
        log: file of what is printed.
    """

    def __init__(self, where: list[str], folder: Path, variables: dict[str, str], log: Path):
        self.log = log
        self.asked = 0
        with log.open("wb") as stream:
            self.shell = subprocess.Popen(
                [*where, "bash", "-eu"],
                cwd=folder,
                env=variables,
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
            )

    def type(self, block: str) -> str:
        """Run a block to its end; what it printed."""
        self.asked += 1
        before, mark = len(self.log.read_text()), f"-- end of block {self.asked} --"
        assert self.shell.stdin is not None
        self.shell.stdin.write(f"{block}\necho {mark!r}\n".encode())
        self.shell.stdin.flush()
        end = time.monotonic() + LIMIT_S
        while mark not in (printed := self.log.read_text()[before:]):
            assert self.shell.poll() is None, f"{block}\n{printed[-6000:]}"
            assert time.monotonic() < end, f"{block}\n{printed[-6000:]}"
            time.sleep(0.1)
        return printed

    def close(self) -> None:
        self.shell.kill()
        self.shell.wait()


@pytest.fixture
def network() -> Iterator[Network]:
    if reason := why_not():
        pytest.skip(reason)
    number = os.getpid()
    made = Network(f"sm{number % 10**6}", f"10.{150 + number % 50}.{number % 250}")
    try:
        yield made
    finally:
        made.close()
        for scratch in Path("/tmp").glob(f"{made.mark}-*"):
            shutil.rmtree(scratch, ignore_errors=True)


def small(start: str, scratch: str) -> str:
    """A block with `ray start`, as two nodes fit on one machine and its short socket paths."""
    more = f"--num-cpus=1 --object-store-memory=100000000 --temp-dir=/tmp/{scratch}"
    return "".join(f"{line.rstrip()} {more}\n" for line in start.splitlines() if line)


def merge(folder: Path, block: str, **values: object) -> None:
    """Write a block of the page, and values by dotted key, into params.yaml."""
    params = read_yaml(folder / "params.yaml")
    params["cluster"] |= yaml.safe_load(block)["cluster"]
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    set_params(folder, **values)


def project(folder: Path) -> Path:
    """A clone with small data, committed, and an installation for `make`."""
    clone(folder)
    set_params(folder, **TINY)
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", *who, "commit", "-qam", "small"], cwd=folder, check=True)
    (folder / ".venv").mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (folder / ".venv" / part).symlink_to(Path(sys.prefix) / part)
    (folder / ".venv/.ready").touch()
    return folder


def test_the_page_leads_from_an_empty_cluster_to_a_registered_model(
    network: Network, tmp_path: Path
) -> None:
    nodes = network.add(), network.add()
    page = PAGE.read_text().replace("HEAD", nodes[0].address)
    page = page.replace("THIS_MACHINE", nodes[1].address).replace("/mnt/shared", str(tmp_path))
    start, experiment, values, repro, jobs, send, stop = BLOCK.findall(page)
    settings, first, other = re.split(r"# on .*\n", start)

    shared, laptop = project(tmp_path / "project"), project(tmp_path / "laptop")
    variables = {**environment(), **SETTINGS, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for role in ("AUTHOR", "COMMITTER"):
        variables |= {f"GIT_{role}_NAME": "t", f"GIT_{role}_EMAIL": "t@t"}
    shells = [
        Terminal(node.command(MACHINE), shared, variables, tmp_path / f"{node.name}.log")
        for node in nodes
    ]
    shells.append(Terminal([], laptop, variables, tmp_path / "laptop.log"))
    head, second, here = shells
    try:
        head.type(settings + small(first, f"{network.mark}-h"))
        second.type("\n".join(settings.splitlines()[1:]) + "\n" + small(other, f"{network.mark}-n"))

        printed = head.type(experiment)
        assert "version 1 as candidate" in printed

        merge(shared, values, **{"train.epochs": 3})
        assert "version 2 as candidate" in head.type(repro)

        merge(laptop, jobs, **{"train.epochs": 4})
        printed = here.type(send)
        for stage in ("tune", "train", "evaluate", "predict"):
            assert f"at http://{nodes[0].address}:8265: {stage}" in printed, printed
        assert "version 3 as candidate" in printed
        assert printed.count(f"at http://{nodes[0].address}:8265: train") == 2, "make submit"
        assert "packaging.py" not in printed, "a line for each file that does not travel"
        assert (laptop / "outputs/candidate/model.safetensors").is_file()
        assert (laptop / "outputs/report/metrics.json").is_file()

        for shell in (second, head):
            shell.type(stop)
        for node in nodes:
            assert not node.find("raylet")
    finally:
        for shell in shells:
            shell.close()
