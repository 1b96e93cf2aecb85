"""Files from elsewhere, damaged at random or on purpose: read, or refused by an error of ours.

A crash ends the test process, a hang its time; 200 inputs of each kind here, 10^5 with `-m slow`.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import segcore
from segcore.data.codec import decode_image, decode_mask, encode_image, encode_mask
from segcore.data.sample import DatasetInfo
from segcore.data.shard_format import PixelCounts, Row, ShardMeta
from segcore.data.shards import open_shards, write_shards
from segcore.errors import SegcoreError
from segcore.package import DESCRIPTION, WEIGHTS

FEW, MANY = 200, 25_000  # of each of the four kinds
DEADLINE_MS = 60_000
TASK = {"classes": ("a", "b"), "palette": ((0, 0, 0), (9, 9, 9))}

edits = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "cut", "copy", "end"]),
        st.floats(0, 1, exclude_max=True),
        st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, b"\0" * 64])),
    ),
    max_size=6,
)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["../../etc/passwd", "/dev/zero", 10**9, -1, [], {}, [[[]]] * 3]),
)  # fmt: skip
values = st.recursive(
    leaves, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=4), v, max_size=4)
)


def damaged(data: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    """`data` with bytes set, inserted, cut out, copied elsewhere, or the rest cut off."""
    for kind, where, what in changes:
        at = int(where * len(data))
        if kind == "set":
            data = data[:at] + what + data[at + len(what) :]
        elif kind == "insert":
            data = data[:at] + what + data[at:]
        elif kind == "cut":
            data = data[:at] + data[at + what[0] :]
        elif kind == "copy":
            data = data[:at] + data[at // 2 : at // 2 + 32] + data[at:]
        else:
            data = data[:at]
    return data


def replaced(document: Any, path: list[int], value: Any) -> Any:
    """`document` with the value at the end of a path of choices replaced."""
    if not path or not isinstance(document, (dict, list)) or not document:
        return value
    keys = sorted(document) if isinstance(document, dict) else range(len(document))
    key = list(keys)[path[0] % len(keys)]
    changed = dict(document) if isinstance(document, dict) else list(document)
    changed[key] = replaced(document[key], path[1:], value)
    return changed


def encoded_images() -> list[bytes]:
    """Small files of every format that is read."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    files = [encode_image(pixels, kind) for kind in ("png", "jpeg", "raw")]
    files.append(encode_mask(pixels[:, :, 0] % 3))
    for kind in ("TIFF", "GIF", "BMP", "WEBP", "PPM"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        files.append(buffer.getvalue())
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 200).save(buffer, "PNG")
    files.append(buffer.getvalue())
    return files


def row(name: str) -> Row:
    pixels = np.full((8, 8, 3), len(name), np.uint8)
    return Row(
        id=name, image=encode_image(pixels, "png"), mask=encode_mask(pixels[:, :, 0] % 2),
        instances=None, labels=(0, 1), height=8, width=8, source_sha256="",
    )  # fmt: skip


def meta() -> ShardMeta:
    return ShardMeta(
        info=DatasetInfo(name="tiny", version="1", **TASK), in_channels=3, size=(8, 8),
        mean=(0.5,) * 3, std=(0.2,) * 3,
        pixel_counts=PixelCounts(pixels=[1, 1], image_pixels=[2, 2], total=2),
    )  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "tiny"
    write_shards(path, meta(), splits={"train": ["a", "bb", "ccc"]}, encode=row)
    return path


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {"base_channels": 1, "norm": "batch", "dropout": 0.0}
    spec = segcore.PackageSpec(
        architecture="unet", options=options, num_classes=2, mean=(0.5,) * 3, std=(0.2,) * 3, **TASK
    )
    model = segcore.create_model("unet", num_classes=2, **options)
    return segcore.save_package(tmp_path_factory.mktemp("fuzz") / "package", model, spec)


def refuses_or_reads(call: Callable[[], object]) -> None:
    """Whatever comes of it, only an error of ours may."""
    with suppress(SegcoreError):
        call()


def many(function: Callable[..., None], count: int) -> Callable[..., None]:
    """A property over a number of inputs."""
    suppressed = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    chosen = settings(
        max_examples=count, deadline=DEADLINE_MS, suppress_health_check=suppressed, database=None
    )
    return chosen(function)


def each(function: Callable[..., None]) -> Callable[..., None]:
    """The same property over few inputs, and over many with the marker `slow`."""
    marks = [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]
    return pytest.mark.parametrize("count", marks)(function)


@each
@pytest.mark.timeout(7200)
def test_images(count: int) -> None:
    files = encoded_images()

    @given(st.integers(0, len(files) - 1), edits, st.sampled_from([1, 3]))
    def check(index: int, changes: list[tuple[str, float, bytes]], channels: int) -> None:
        data = damaged(files[index], changes)
        refuses_or_reads(lambda: decode_image(data, channels))
        refuses_or_reads(lambda: decode_mask(data))

    many(check, count)()


@each
@pytest.mark.timeout(7200)
def test_shards(count: int, shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(shards, folder)
    file = folder / "train" / "part-00000.parquet"
    whole, manifest = file.read_bytes(), json.loads((folder / "manifest.json").read_text())

    @given(edits)
    def check(changes: list[tuple[str, float, bytes]]) -> None:
        data = damaged(whole, changes)
        file.unlink()  # the one before is mapped
        file.write_bytes(data)
        manifest["files"][0]["bytes"] = len(data)
        (folder / "manifest.json").write_text(json.dumps(manifest))

        def read() -> None:
            split = open_shards(folder).split("train")
            assert len(split.ids) == len(split)
            for index in range(len(split)):
                split.decode(index)

        refuses_or_reads(read)

    many(check, count)()


@each
@pytest.mark.timeout(7200)
def test_manifests(count: int, shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(shards, folder)
    text = (folder / "manifest.json").read_bytes()
    paths = st.lists(st.integers(0, 20), max_size=5)

    @given(st.one_of(edits, st.tuples(paths, values)))
    def check(change: Any) -> None:
        if isinstance(change, tuple):
            changed = json.dumps(replaced(json.loads(text), *change)).encode()
        else:
            changed = damaged(text, change)
        (folder / "manifest.json").write_bytes(changed)
        refuses_or_reads(read)

    def read() -> None:
        split = open_shards(folder).split("train")
        for index in range(min(3, len(split))):  # a manifest without files has no rows
            split.read(index)

    many(check, count)()


@each
@pytest.mark.timeout(7200)
def test_packages(count: int, package: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(package, folder)
    weights = (folder / WEIGHTS).read_bytes()
    document = json.loads((folder / DESCRIPTION).read_text())
    paths = st.lists(st.integers(0, 20), max_size=4)

    @given(st.one_of(st.none(), edits), st.one_of(st.none(), edits, st.tuples(paths, values)))
    def check(in_weights: Any, change: Any) -> None:
        data = weights if in_weights is None else damaged(weights, in_weights)
        (folder / WEIGHTS).unlink()  # the one before may be mapped
        (folder / WEIGHTS).write_bytes(data)
        signed = {**document, "weights_sha256": hashlib.sha256(data).hexdigest()}
        text = json.dumps(signed).encode()
        if isinstance(change, tuple):
            text = json.dumps(replaced(signed, *change)).encode()
        elif change is not None:
            text = damaged(text, change)
        (folder / DESCRIPTION).write_bytes(text)
        refuses_or_reads(lambda: segcore.load_package(folder))

    many(check, count)()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"base_channels": 10**9}}, "at most 100000"),
        ({"options": {"base_channels": 512}}, "copy the package again"),
        ({"options": {"pretrained": True}}, "brings its own weights"),
        ({"options": {"base_channels": [[[1]] * 99]}}, "more entries"),
        ({"classes": "ab"}, "classes is 'ab', expected a list"),
        ({"mean": [True, 1, 1]}, r"mean\[0\] is True"),
        ({"num_classes": True}, "num_classes is True"),
    ],
)
def test_what_a_package_may_not_ask_for(
    package: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    shutil.copytree(package, tmp_path / "package")
    file = tmp_path / "package" / DESCRIPTION
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, **change}))
    with pytest.raises(segcore.errors.PackageError, match=message):
        segcore.load_package(tmp_path / "package")


def test_an_array_that_announces_more_than_it_has_is_not_allotted() -> None:
    header = io.BytesIO()
    announced = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6, 3)}
    np.lib.format.write_array_header_1_0(header, announced)
    with pytest.raises(segcore.errors.DataError, match="announced"):
        decode_image(header.getvalue(), 3)
    with pytest.raises(segcore.errors.DataError, match="nested too deeply"):
        segcore.data.shards.ShardedDataset(Path("x"), b"[" * 10**6)
