"""Ray nodes with addresses of their own: network namespaces on one bridge, made and removed."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
PORT = 6399
START_S = 300.0
SETTINGS = {
    "RAY_raylet_start_wait_time_s": "120",  # a busy machine takes longer than Ray's 30 s
    # A node that answers nothing is dead after three seconds, not after fifteen.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


def ip(*words: str) -> str:
    """Run iproute2's `ip`."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


class Network:
    """A bridge, and namespaces that hang on it by a pair of virtual interfaces each.

    Args:
        mark: at most 8 letters that no other network on this machine has.
        subnet: the first three numbers of its addresses.
    """

    def __init__(self, mark: str, subnet: str) -> None:
        self.mark = mark
        self.subnet = subnet
        self.names: list[str] = []
        ip("link", "add", mark, "type", "bridge")
        ip("address", "add", f"{subnet}.1/24", "dev", mark)
        ip("link", "set", mark, "up")

    def add(self) -> "Node":
        """A node that is not started yet."""
        number = len(self.names)
        name, outer, inner = (f"{self.mark}{part}{number}" for part in ("-", "o", "i"))
        ip("netns", "add", name)
        self.names.append(name)
        ip("link", "add", outer, "type", "veth", "peer", "name", inner)
        ip("link", "set", inner, "netns", name)
        ip("link", "set", outer, "master", self.mark)
        ip("link", "set", outer, "up")
        address = f"{self.subnet}.{number + 2}"
        for words in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{address}/24", "dev", inner),
            ("link", "set", inner, "up"),
        ):
            ip("-n", name, *words)
        return Node(name, address)

    def close(self) -> None:
        """Kill what runs in the namespaces, by process id, and remove them and the bridge."""
        for name in self.names:
            Node(name, "").kill()
            with suppress(OSError):
                ip("netns", "del", name)
        with suppress(OSError):
            ip("link", "del", self.mark)


class Node:
    """One machine of the cluster: a namespace in which Ray may run.

    Args:
        name: of the namespace.
        address: in it; "" for one that is only to be killed.
    """

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    def command(self, command: list[str]) -> list[str]:
        """`command` as it runs on this node."""
        return ["ip", "netns", "exec", self.name, *command]

    def pids(self) -> list[int]:
        """All processes on this node."""
        try:
            return [int(pid) for pid in ip("netns", "pids", self.name).split()]
        except OSError:
            return []

    def find(self, *words: str) -> list[psutil.Process]:
        """Processes on this node whose title holds all of `words`."""
        found = []
        for pid in self.pids():
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                if all(word in " ".join(process.cmdline()) for word in words):
                    found.append(process)
        return found

    def kill(self) -> None:
        """SIGKILL everything, as a machine that loses its power."""
        end = time.monotonic() + 30
        while (pids := self.pids()) and time.monotonic() < end:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def start(self, *options: str, home: Path, environment: dict[str, str]) -> None:
        """Start Ray on this node and wait until it says that it runs.

        Args:
            options: of `ray start`.
            home: folder of the log.
            environment: of the node and of its workers.
        """
        scratch = Path("/tmp") / f"{self.name}-{secrets.token_hex(2)}"  # sockets need short paths
        start = [*RAY, "start", f"--node-ip-address={self.address}", "--block", *options]
        start += ["--num-cpus=1", "--object-store-memory=100000000", f"--temp-dir={scratch}"]
        log = home / f"{scratch.name}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                self.command(start), env=environment, stdout=stream, stderr=stream
            )
        end = time.monotonic() + START_S
        while "Ray runtime started" not in log.read_text():
            if process.poll() is not None or time.monotonic() > end:
                raise OSError(f"node {self.name} did not start:\n{log.read_text()}")
            time.sleep(0.2)


class Cluster:
    """A head and another node, one processor each.

    Args:
        home: folder for logs and the token.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        token = home / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        self.environment = {
            **os.environ,
            **SETTINGS,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "OMP_NUM_THREADS": "1",
        }
        number = os.getpid()
        self.network = Network(f"sc{number % 10**6}", f"10.{200 + number % 50}.{number % 250}")
        self.head = self.network.add()
        self.other = self.network.add()

    @property
    def address(self) -> str:
        """Where drivers join; they run on the head."""
        return f"{self.head.address}:{PORT}"

    def start_head(self) -> None:
        """Start the head."""
        self._start(self.head, "--head", f"--port={PORT}", "--include-dashboard=false")

    def start_other(self) -> None:
        """Start the other node, for the first time or again."""
        self._start(self.other, f"--address={self.address}")

    def repair(self) -> None:
        """Start again what an earlier test has killed and not brought back."""
        if not self.head.find("gcs_server"):
            self.head.kill()
            self.other.kill()
            self.start_head()
        if not self.other.find("raylet"):
            self.other.kill()
            self.start_other()

    def _start(self, node: Node, *options: str) -> None:
        node.start(*options, home=self.home, environment=self.environment)

    def run(self, command: list[str], *, cwd: Path, log: Path) -> subprocess.Popen[bytes]:
        """Start a driver on the head; what it prints is added to `log`."""
        with log.open("ab") as stream:
            return subprocess.Popen(
                self.head.command(command),
                cwd=cwd,
                env={**self.environment, "PYTHONPATH": str(Path(__file__).parents[2])},
                stdout=stream,
                stderr=stream,
            )

    def close(self) -> None:
        """Stop everything that was started."""
        self.network.close()
        for scratch in Path("/tmp").glob(f"{self.network.mark}-*"):
            shutil.rmtree(scratch, ignore_errors=True)


def why_not() -> str:
    """Why namespaces cannot be made here; "" if they can."""
    if shutil.which("ip") is None:
        if shutil.which("apt-get") is None or os.geteuid() != 0:
            return "iproute2 (ip) is not installed"
        install = ["apt-get", "-qq", "install", "-y", "--no-install-recommends", "iproute2"]
        if subprocess.run(install, capture_output=True, check=False).returncode:
            return "iproute2 (ip) is not installed, and apt-get could not install it"
    probe = f"scprobe{os.getpid()}"
    try:
        ip("netns", "add", probe)
        try:
            ip("netns", "exec", probe, "true")
            ip("link", "add", probe[:15], "type", "bridge")
            ip("link", "del", probe[:15])
        finally:
            ip("netns", "del", probe)
    except OSError as error:
        return f"network namespaces are not permitted here ({error})"
    return ""
