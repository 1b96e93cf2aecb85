"""The MLflow UI over our runs, as a person sees it: a real server and a real browser."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipelines.params import Params
from pipelines.tracking.run import open_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[2]
START_LIMIT_S = 180
MIOU = {"linknet": 0.7312, "unet": 0.6954}

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, str]:
    """Two finished runs in a fresh store: name -> run id."""
    params = Params.load(ROOT / "params.yaml").override(
        {
            "tracking.uri": f"sqlite:///{tmp_path}/mlflow.db",
            "tracking.system_metrics": False,
            "cluster.storage": str(tmp_path / "runs"),
        }
    )
    ids = {}
    for name, miou in MIOU.items():
        with open_run("train", params, name=name) as run:
            run.log_metrics({"val/miou": miou / 2}, 1)
            run.log_metrics({"val/miou": miou}, 2)
            ids[name] = run.id
    return ids


@pytest.fixture
def server(runs: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """Address of `mlflow ui`, as `make ui` starts it."""
    port = free_port()
    mlflow = Path(sys.executable).parent / "mlflow"
    process = subprocess.Popen(
        [
            mlflow,
            "ui",
            "--backend-store-uri",
            f"sqlite:///{tmp_path}/mlflow.db",
            "--port",
            str(port),
        ],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).read()
            break
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, "mlflow ui ended by itself"
            time.sleep(0.5)
    yield address
    subprocess.run(["kill", "--", f"-{process.pid}"], check=False)
    process.wait(timeout=30)


@contextmanager
def open_page(address: str) -> "Iterator[Page]":
    """A page of a real browser; skips where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1400, "height": 2400})
        page.goto(address)
        yield page
        browser.close()


def test_compare_view_shows_the_miou_of_both_runs(
    runs: dict[str, str], server: str, tmp_path: Path
) -> None:
    ids = json.dumps(list(runs.values()))
    with open_page(f'{server}/#/compare-runs?runs={ids}&experiments=["1"]') as page:
        page.get_by_text("val/miou").first.wait_for(timeout=90_000)
        text = page.inner_text("body")
        page.screenshot(path=str(tmp_path / "compare.png"))
    for name, miou in MIOU.items():
        assert name in text
        assert f"{miou:.3f}" in text  # the page rounds


def test_address_of_make_ui_opens_on_the_training_runs(runs: dict[str, str], server: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    printed = re.search(r"http://127\.0\.0\.1:5000(/#/\S+?)\"", makefile)
    assert printed
    with open_page(f"{server}{printed[1]}") as page:
        for name in runs:
            page.get_by_text(name).first.wait_for(timeout=90_000)
        assert "/experiments/1/runs" in page.url
