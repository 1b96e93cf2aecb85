"""`segcore serve` by real HTTP and in a real browser."""

import io
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
import uvicorn
from PIL import Image

import segcore
from pipelines.errors import ServingError
from pipelines.params import Params
from pipelines.prediction import png_facts
from pipelines.prediction.run import predict
from pipelines.serving import server as serving
from pipelines.serving.app import Limits, create_app
from pipelines.serving.service import Service
from segcore.errors import OptionError
from segcore.inference import rle
from segcore.package import package_digest
from tests.pipelines.conftest import CLASSES, PALETTE, REPOSITORY, paint

MAX_MB, MAX_REQUESTS, BODY_S = 0.2, 2, 1.0
MAX_MEGAPIXELS = 0.3
ORIENTATION = 0x0112


@dataclass
class Running:
    """A server in a thread of this process."""

    url: str
    service: Service


@pytest.fixture(scope="module")
def served(good_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    storage = tmp_path_factory.mktemp("serve")
    params = Params.load(REPOSITORY / "params.yaml").override(
        {
            "cluster.storage": str(storage),
            "predict.precision": "fp32",
            "predict.max_megapixels": MAX_MEGAPIXELS,
        }
    )
    service = serving.open_service(params, model=str(good_package), device="cpu")
    app = create_app(service, Limits(MAX_MB, MAX_REQUESTS, BODY_S))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        running = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", service)
        running.should_exit = True
        thread.join(timeout=20)


def encoded(picture: Image.Image, form: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def painted(seed: int = 0) -> bytes:
    return encoded(Image.fromarray(paint(seed)[0]))


def post(served: Running, data: Any, **query: str) -> requests.Response:
    return requests.post(f"{served.url}/predict", params=query, data=data, timeout=30)


def test_png_is_what_predict_writes(served: Running, project: Params, good_package: Path) -> None:
    Path("images").mkdir()
    Path("images/one.png").write_bytes(painted())
    predict(project, images="images", model=str(good_package), out=Path("out"), overlays=False)
    expected = Path("out/masks/one.png")
    reply = post(served, painted())
    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png")
    ours, theirs = Image.open(io.BytesIO(reply.content)), Image.open(expected)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert ours.mode == "P"
    assert ours.getpalette()[:9] == [value for color in PALETTE for value in color]
    Path("reply.png").write_bytes(reply.content)
    facts, told = png_facts.read(Path("reply.png")), png_facts.read(expected)
    assert told is not None
    assert facts == {key: value for key, value in told.items() if key != "input"}


def test_json_says_sizes_classes_and_shares(served: Running) -> None:
    reply = post(served, painted(), format="json").json()
    mask = np.asarray(Image.open(io.BytesIO(post(served, painted()).content)))
    assert (reply["height"], reply["width"], reply["classes"]) == (48, 64, list(CLASSES))
    shares = {name: np.mean(mask == k) for k, name in enumerate(CLASSES) if (mask == k).any()}
    assert reply["class_shares"] == pytest.approx(shares)
    by_header = requests.post(
        served.url, data=painted(), headers={"Accept": "application/json"}, timeout=30
    )
    assert by_header.json()["class_shares"] == reply["class_shares"]


def test_model_and_health_say_what_is_there(served: Running, good_package: Path) -> None:
    model = requests.get(f"{served.url}/model", timeout=30).json()
    assert model["digest"] == package_digest(good_package)
    assert (model["classes"], model["architecture"]) == (list(CLASSES), "unet")
    assert (model["max_mb"], model["max_megapixels"]) == (MAX_MB, MAX_MEGAPIXELS)
    health = requests.get(f"{served.url}/health", timeout=30).json()
    assert health == {"status": "ok", "requests": 0, "max_requests": MAX_REQUESTS}


def bomb() -> bytes:
    """A PNG of a few kB that announces, and holds, 400 megapixels of zeros."""
    picture = Image.new("1", (20_000, 20_000))
    return encoded(picture, compress_level=9)


HOSTILE = {
    "nothing": (b"", 422, "the body is empty"),
    "text": (b"no picture at all", 422, "this is no picture"),
    "truncated png": (painted()[:400], 422, "cannot be read as an image"),
    "truncated jpeg": (
        encoded(Image.fromarray(paint(0)[0]), "jpeg")[:700], 422, "cannot be read as an image"
    ),
    "postscript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(x) run\n",
        422,
        "this is no picture",
    ),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "this is no picture"),
    "many pixels": (bomb(), 413, "400 megapixels, the limit is 0.3"),
    "just too many": (encoded(Image.new("L", (600, 501))), 413, "0.3006 megapixels"),
    "long body": (bytes(int(MAX_MB * 1e6) + 1), 413, "more than 0.2 MB"),
    "pickled array": (b"\x93NUMPY\x01\x00", 422, "npy"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_picture_is_refused_in_one_line(served: Running, name: str) -> None:
    data, status, words = HOSTILE[name]
    reply = post(served, data)
    assert reply.status_code == status, reply.text
    assert list(reply.json()) == ["error"]
    assert words in reply.json()["error"]
    assert "\n" not in reply.json()["error"]
    assert post(served, painted()).status_code == 200  # and it goes on


def test_a_body_of_unknown_length_is_cut_off(served: Running) -> None:
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(500):
            sent += 10_000
            yield bytes(10_000)

    try:
        reply = post(served, parts())
    except requests.ConnectionError:  # closed while we were still sending
        assert sent < 5_000_000
    else:
        assert reply.status_code == 413


def test_a_form_with_the_picture_is_answered_as_the_picture(served: Running) -> None:
    form = requests.post(served.url, files={"image": ("a.png", painted())}, timeout=30)
    assert form.status_code == 200
    assert form.content == post(served, painted()).content
    two = {"one": ("a.png", painted()), "two": ("b.png", painted(1))}
    several = requests.post(served.url, files=two, timeout=30)
    assert several.status_code == 422
    assert "the form has 2 files" in several.json()["error"]


def test_unknown_routes_and_formats_say_what_to_do(served: Running) -> None:
    wrong = post(served, painted(), format="jsn")
    assert wrong.status_code == 422
    assert "did you mean 'json'" in wrong.json()["error"]
    assert list(requests.get(f"{served.url}/nowhere", timeout=30).json()) == ["error"]
    assert requests.get(f"{served.url}/predict", timeout=30).status_code == 405


def test_exif_rotation_grey_16_bit_and_alpha_are_as_predict_reads_them(served: Running) -> None:
    pixels, _ = paint(3)
    plain = np.asarray(Image.open(io.BytesIO(post(served, painted(3)).content)))
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # the file lies on its side, 90 degrees to be turned clockwise
    lying = encoded(Image.fromarray(np.rot90(pixels).copy()), exif=exif)
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(post(served, lying).content))), plain
    )
    alpha = encoded(Image.fromarray(pixels).convert("RGBA"))
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(post(served, alpha).content))), plain
    )
    grey = encoded(Image.fromarray(pixels).convert("L"))
    assert post(served, grey).status_code == 200
    deep = np.asarray(Image.fromarray(pixels).convert("L")).astype(np.uint16) * 257
    assert post(served, encoded(Image.fromarray(deep)), format="json").json()["width"] == 64


def test_busy_server_refuses_and_says_when_to_come_back(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    real = served.service.png

    def slow(data: bytes) -> bytes:
        gate.wait(20)
        return real(data)

    monkeypatch.setattr(served.service, "png", slow)
    with ThreadPoolExecutor(MAX_REQUESTS) as pool:
        waiting = [pool.submit(post, served, painted()) for _ in range(MAX_REQUESTS)]
        health = {"requests": 0}
        while health["requests"] < MAX_REQUESTS:
            health = requests.get(f"{served.url}/health", timeout=5).json()
        refused = post(served, painted())
        gate.set()
        assert [one.result().status_code for one in waiting] == [200] * MAX_REQUESTS
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "the limit is 2" in refused.json()["error"]
    assert post(served, painted()).status_code == 200


def test_a_body_that_never_comes_frees_its_place(served: Running) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        start = time.monotonic()
        assert slow.recv(4096).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - start >= BODY_S / 2
    assert requests.get(f"{served.url}/health", timeout=5).json()["requests"] == 0


def test_many_at_once_give_what_one_gives(served: Running) -> None:
    expected = [post(served, painted(seed)).content for seed in range(4)]
    with ThreadPoolExecutor(MAX_REQUESTS) as pool:
        jobs = [pool.submit(post, served, painted(seed % 4)) for seed in range(12)]
        assert [one.result().content for one in jobs] == expected * 3


def test_what_cannot_be_is_said_before_anything_is_loaded(project: Params) -> None:
    with pytest.raises(OptionError, match="onnxruntime runs on the CPU"):
        serving.open_service(project, model="x", engine="onnxruntime", device="cuda")
    with pytest.raises(OptionError, match="device 'tpu9' is not to be had"):
        serving.open_service(project, model="x", device="tpu9")


def test_a_port_in_use_is_one_message(served: Running) -> None:
    port = int(served.url.rpartition(":")[2])
    with pytest.raises(ServingError, match=f"cannot listen on 127.0.0.1:{port}"):
        serving.serve(served.service, Limits(1, 1), host="127.0.0.1", port=port, ready=print)


def detector(path: Path) -> Path:
    """A package of the smallest model of objects, not trained: it finds some in any noise."""
    spec = segcore.PackageSpec(
        architecture="watershed",
        options={"base_channels": 4, "min_area": 1},
        task="instance",
        num_classes=3,
        classes=CLASSES,
        palette=PALETTE,
        things=(False, True, True),
        mean=(0.4,) * 3,
        std=(0.2,) * 3,
    )
    torch.manual_seed(0)
    model = segcore.create_model("watershed", num_classes=3, **spec.options)
    return segcore.save_package(path, model, spec)


def test_objects_come_with_run_lengths_and_lines_of_their_own(
    project: Params, tmp_path: Path
) -> None:
    params = project.override({"predict.min_score": 0.0})
    package = detector(tmp_path / "detector")
    service = serving.open_service(params, model=str(package), device="cpu")
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise))
    found = json.loads(json.dumps(dict(service.predict(data).facts)))
    ids = np.asarray(Image.open(io.BytesIO(service.png(data))))
    assert len(found["objects"]) == ids.max() > 0
    for place, one in enumerate(found["objects"], start=1):
        mask = rle.decode(one["counts"], found["height"], found["width"])
        assert mask.sum() == one["area"]
        assert CLASSES[one["category"]] in ("disk", "square")
        assert mask[ids == place].all()
    view = service.view(data)
    drawn = [one for one in found["objects"] if one["score"] >= 0.5]
    assert [(line["name"], line["detail"]) for line in view["legend"]] == [
        (CLASSES[one["category"]], f"{one['score']:.2f}") for one in drawn
    ]
    assert len({tuple(line["color"]) for line in view["legend"]}) == len(drawn)


@pytest.mark.ray
def test_the_command_serves_by_an_engine_and_stops(project: Params, good_package: Path) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(good_package)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--engine", "onnxruntime"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert " by onnxruntime on cpu: http://127.0.0.1:" in line, process.communicate()[1]
        url = line.rpartition(": ")[2].strip()
        reply = requests.post(url, data=painted(), timeout=60)
        assert reply.headers["content-type"] == "image/png"
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors
