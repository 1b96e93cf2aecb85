"""The page of `segcore serve` as a person sees it: a real server, a real browser, no network."""

import io
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import uvicorn
from PIL import Image

from pipelines.params import Params
from pipelines.serving import server as serving
from pipelines.serving.app import Limits, create_app
from tests.pipelines.conftest import CLASSES, REPOSITORY, paint

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

DROP = """([name, bytes]) => {
  const held = new DataTransfer();
  held.items.add(new File([new Uint8Array(bytes)], name));
  window.dispatchEvent(new DragEvent("drop", {dataTransfer: held, cancelable: true}));
}"""


@pytest.fixture(scope="module")
def address(good_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    storage = str(tmp_path_factory.mktemp("serve"))
    params = Params.load(REPOSITORY / "params.yaml").override({"cluster.storage": storage})
    service = serving.open_service(params, model=str(good_package), device="cpu")
    app = create_app(service, Limits(1, 4))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        running = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        running.should_exit = True
        thread.join(timeout=20)


@pytest.fixture(scope="module")
def page(address: str) -> "Iterator[Page]":
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser.new_page(viewport={"width": 1100, "height": 800})
        browser.close()


@pytest.fixture
def opened(page: "Page", address: str) -> "Iterator[Page]":
    """The page; whatever it asks of another address, or complains about, fails the test."""
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda line: said.append(line.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    yield page
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert [line for line in said if "status of 4" not in line] == []


def encoded(seed: int, form: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(paint(seed)[0]).resize((640, 480), 0).save(buffer, form)
    return buffer.getvalue()


def drop(page: "Page", name: str, data: bytes) -> None:
    page.evaluate(DROP, [name, list(data)])


def wait_for_width(page: "Page", image: str, pixels: int) -> None:
    from playwright.sync_api import expect

    expect(page.locator(image)).to_have_js_property("naturalWidth", pixels)


def on_screen(page: "Page") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.locator("#stack").screenshot())).convert("RGB"))


def test_a_dropped_picture_shows_overlay_and_legend_that_fade(opened: "Page") -> None:
    opened.get_by_text("unet, 3 classes").wait_for()
    drop(opened, "one.png", encoded(0))
    opened.locator("#result").wait_for()
    entries = opened.locator("#legend li").all_inner_texts()
    assert {entry.split("\n")[0] for entry in entries} == set(CLASSES)
    assert all(entry.endswith("%") for entry in entries)
    wait_for_width(opened, "#overlay", 640)
    full = on_screen(opened).astype(int)
    opened.locator("#opacity").fill("0")
    none = on_screen(opened).astype(int)
    opened.locator("#opacity").fill("50")
    half = on_screen(opened).astype(int)
    assert np.abs(full - none).mean() > 3
    assert np.abs(2 * half - full - none).mean() < 2  # in the middle between both


def test_a_picture_that_browsers_do_not_know_is_shown_as_the_model_saw_it(
    opened: "Page", tmp_path: Path
) -> None:
    (tmp_path / "one.tif").write_bytes(encoded(1, "tiff"))
    assert len((tmp_path / "one.tif").read_bytes()) < 1e6
    opened.locator("#file").set_input_files(tmp_path / "one.tif")
    wait_for_width(opened, "#picture", 640)
    with opened.expect_download() as saved:
        opened.get_by_text("Save the PNG").click()
    assert Image.open(saved.value.path()).size == (640, 480)


def test_what_is_no_picture_is_said_and_the_next_one_works(opened: "Page") -> None:
    drop(opened, "notes.txt", b"no picture")
    opened.get_by_text("this is no picture").wait_for()
    assert opened.locator("#result").is_hidden()
    drop(opened, "one.jpg", encoded(2, "jpeg"))
    opened.locator("#result").wait_for()
    assert opened.locator("#error").inner_text() == ""
