"""Places of an object store, and shards in them, against a real S3 server."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import segcore
from segcore.data.address import check_address
from segcore.data.place import Place
from segcore.data.prepare import prepare, validate, write
from segcore.data.shards import verify_shards
from segcore.datasets import DataSource, create_dataset
from segcore.errors import DataError, OptionError


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """Twelve small pictures with masks."""
    folder = tmp_path / "own"
    generator = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(12):
        image = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        mask = generator.integers(0, 2, (16, 16), dtype=np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{number:02d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:02d}.png")
    return folder


def dataset(folder: Path, tmp_path: Path) -> segcore.datasets.Dataset:
    source = DataSource(
        raw=tmp_path / "raw", path=folder, classes=None, ignore_index=255, val_fraction=0.2,
        test_fraction=0.2, seed=0, options={}, mirror=None,
    )  # fmt: skip
    return create_dataset("folder", source)


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_a_place_gives_back_what_was_put(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    address = str(tmp_path / "place") if kind == "local" else request.getfixturevalue("bucket")
    place = pickle.loads(pickle.dumps(Place(address) / "deep"))
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    assert place.sizes() == {}
    if kind == "local":
        Path(address, "deep", "a").mkdir(parents=True)
    place.write("a/b.bin", b"one")
    place.write("a/b.bin", b"other")
    place.upload(tmp_path / "file", "a/c.bin")
    assert place.read("a/b.bin") == b"other"
    assert place.sizes() == {"a/b.bin": 5, "a/c.bin": 100_000}
    place.download("a/c.bin", tmp_path / "back" / "c.bin")
    assert (tmp_path / "back" / "c.bin").read_bytes() == b"x" * 100_000
    with pytest.raises(FileNotFoundError):
        place.read("a/none")
    with pytest.raises(DataError, match="at most 10"):
        place.read("a/c.bin", most=10)
    place.remove("a/b.bin")
    place.remove("a/b.bin")
    assert list(place.sizes()) == ["a/c.bin"]
    place.clear()
    assert place.sizes() == {}


@pytest.mark.parametrize(
    "address",
    ["s3://key:secret@bucket/a", "s3://b/../c", "http://host/a", "s3://", "s3://bucket?region=x"],
)
def test_addresses_with_more_than_bucket_and_prefix_are_refused(address: str) -> None:
    with pytest.raises(OptionError) as caught:
        check_address(address, "data.root")
    assert "secret" not in str(caught.value)
    assert "data.root" in str(caught.value)


def test_shards_in_a_bucket_are_those_of_a_folder(
    own_folder: Path, tmp_path: Path, bucket: str
) -> None:
    prepare(dataset(own_folder, tmp_path), tmp_path / "local", rows_per_shard=3)
    validation = validate(dataset(own_folder, tmp_path))
    pointer = tmp_path / "pointer"
    write(validation, pointer, rows_per_shard=3, root=Place(bucket))

    local, remote = segcore.open_shards(tmp_path / "local"), verify_shards(pointer)
    assert remote.digest == local.digest
    assert {file.name for file in pointer.iterdir()} == {
        "manifest.json", "place.json", "rejected.csv",
    }  # fmt: skip
    for split in ("train", "val", "test"):
        ours, theirs = local.split(split), pickle.loads(pickle.dumps(remote.split(split)))
        assert theirs.ids == ours.ids
        assert [theirs.read(i) for i in range(len(theirs))] == [
            ours.read(i) for i in range(len(ours))
        ]
    np.testing.assert_array_equal(remote.class_points().row, local.class_points().row)
    assert segcore.open_shards(remote.place.address).digest == local.digest

    write(validation, tmp_path / "again", rows_per_shard=3, root=Place(bucket))
    assert segcore.open_shards(tmp_path / "again").place.address == remote.place.address
    remote.place.clear()
    with pytest.raises(DataError, match="no longer in s3://"):
        segcore.open_shards(pointer)


def test_a_damaged_or_absent_remote_shard_is_named(
    own_folder: Path, tmp_path: Path, bucket: str
) -> None:
    write(validate(dataset(own_folder, tmp_path)), tmp_path / "pointer", root=Place(bucket))
    shards = segcore.open_shards(tmp_path / "pointer")
    name, size = shards.files[0]["path"], shards.files[0]["bytes"]
    shards.place.write(name, bytes(size))
    with pytest.raises(DataError, match=rf"{bucket}.*{name}: sha256"):
        verify_shards(tmp_path / "pointer")
    with pytest.raises(DataError, match=rf"corrupt shard {bucket}.*{name}"):
        segcore.open_shards(tmp_path / "pointer").split("train").read(0)
    shards.place.remove(name)
    with pytest.raises(DataError, match=rf"{name}: the file is missing"):
        segcore.open_shards(tmp_path / "pointer")


def test_a_store_that_is_away_says_so_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    with pytest.raises(DataError, match=r"AWS_ENDPOINT_URL") as caught:
        segcore.open_shards("s3://bucket/prefix")
    assert "planted" not in str(caught.value)
