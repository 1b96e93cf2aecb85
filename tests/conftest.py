"""A real S3 server on loopback, for the tests of storage."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs

BUCKET = "bucket"
SECRET = "planted/Secret0Key1Of2The3Standard4Chain5"
KEY = "AKIAPLANTEDKEY000001"
START_S = 120.0


def free_port() -> int:
    """A port of loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def install_server(folder: Path) -> Path:
    """The program of moto's S3 server, in an environment of its own.

    It asks for an older python-dateutil than matplotlib does, so it is in no extra of ours.
    """
    uv = str(Path(sys.executable).with_name("uv"))
    for arguments in (
        ["venv", "--python", sys.executable, str(folder)],
        ["pip", "install", "--python", str(folder / "bin" / "python"), "moto[server]>=5"],
    ):
        done = subprocess.run([uv, "--quiet", *arguments], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"moto's server cannot be installed: {done.stderr.strip()[-200:]}")
    return folder / "bin" / "moto_server"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an S3 server with one bucket; a process of its own, stopped by its id."""
    program = install_server(tmp_path_factory.mktemp("moto"))
    address = f"http://127.0.0.1:{free_port()}"
    log = tmp_path_factory.mktemp("s3") / "server.log"
    command = [program, "-H", "127.0.0.1", "-p", address.rpartition(":")[2]]
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        end = time.monotonic() + START_S
        # urlopen keeps the proxies of its first call, which another test may have set.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            try:
                direct.open(f"{address}/moto-api/", timeout=START_S).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"no S3 server: {log.read_text()}") from None
                time.sleep(0.1)
        client = fs.S3FileSystem(
            access_key=KEY, secret_key=SECRET, endpoint_override=address, region="us-east-1",
            allow_bucket_creation=True,
        )  # fmt: skip
        client.create_dir(BUCKET)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture
def bucket(s3_server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix of its own in the bucket; endpoint and credentials are in the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return f"s3://{BUCKET}/{request.node.name}"
