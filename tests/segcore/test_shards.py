"""Shards: what is written is read back, the same bytes each time, whole or not at all."""

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from segcore.data import shard_split
from segcore.data.codec import encode_image, encode_mask
from segcore.data.sample import DatasetInfo, Instance
from segcore.data.shards import (
    SCHEMA,
    Row,
    ShardedDataset,
    ShardMeta,
    open_shards,
    verify_shards,
    write_shards,
)
from segcore.errors import DataError, OptionError, UnknownNameError
from segcore.inference import rle

META = ShardMeta(
    info=DatasetInfo("toy", "1", ("a", "b"), ((0, 0, 0), (255, 0, 0)), things=(False, True)),
    in_channels=3,
    size=None,
    mean=(0.1, 0.2, 0.3),
    std=(0.5, 0.5, 0.5),
    pixel_counts={"pixels": [3, 4], "image_pixels": [7, 7], "total": 7},
)


def make_row(number: int, encoding: str = "png") -> Row:
    image = np.full((6, 8, 3), number, dtype=np.uint8)
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[2:4, 1:6] = 1
    instance = Instance(1, (1.0, 2.0, 5.0, 2.0), 10.0, rle.encode(mask == 1))
    return Row(
        id=f"sample{number}",
        image=encode_image(image, encoding),
        mask=encode_mask(mask) if number % 10 else None,
        instances=(instance,) if number % 2 else None,
        labels=(0, 1) if number % 10 else None,
        height=6,
        width=8,
        source_sha256=f"{number:064d}",
    )


def write(path: Path, train: int = 50, rows_per_shard: int = 20) -> ShardedDataset:
    splits = {"train": range(train), "val": range(100, 103)}
    write_shards(path, META, splits=splits, encode=make_row, rows_per_shard=rows_per_shard)
    return open_shards(path)


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    dataset = write(tmp_path / "toy")
    train = dataset.split("train")
    assert len(train) == 50
    assert len(dataset.split("val")) == 3
    assert len(dataset.split("test")) == 0
    assert train.ids == [f"sample{i}" for i in range(50)]
    assert train.sizes == [(6, 8)] * 50
    for index in (49, 0, 19, 20, 16, 33):
        assert train.read(index) == make_row(index)
        image, mask = train.decode(index)
        assert image.dtype == np.uint8
        assert (image == index).all()
        assert (mask is None) == (index % 10 == 0)


def test_dataset_describes_itself(tmp_path: Path) -> None:
    dataset = write(tmp_path / "toy")
    assert (dataset.name, dataset.classes, dataset.num_classes) == ("toy", ("a", "b"), 2)
    assert (dataset.mean, dataset.std, dataset.in_channels) == (META.mean, META.std, 3)
    assert dataset.pixel_counts == META.pixel_counts
    assert dataset.info == META.info
    assert (dataset.task, dataset.size, dataset.ignore_index) == ("semantic", None, 255)


def test_schema_and_metadata_are_the_designs(tmp_path: Path) -> None:
    write(tmp_path / "toy")
    files = sorted((tmp_path / "toy" / "train").iterdir())
    assert [f.name for f in files] == [f"part-{i:05d}.parquet" for i in range(3)]
    schema = pq.read_schema(files[0])
    assert schema.names == SCHEMA.names
    assert schema.equals(SCHEMA)
    described = json.loads(schema.metadata[b"segcore"])
    assert described["split"] == "train"
    assert described["samples"] == 50
    assert described["classes"] == ["a", "b"]
    assert described["pixel_counts"] == META.pixel_counts
    assert pq.ParquetFile(files[0]).metadata.row_group(0).num_rows == 16


def test_rewriting_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "one"), write(tmp_path / "two")
    assert first.digest == second.digest
    for file in first.files:
        assert (first.path / file["path"]).read_bytes() == (second.path / file["path"]).read_bytes()
    assert write(tmp_path / "one", train=49).digest != second.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


def test_split_survives_pickling_and_threads(tmp_path: Path) -> None:
    train = write(tmp_path / "toy").split("train")
    train.read(3)
    copy = pickle.loads(pickle.dumps(train))
    order = np.random.default_rng(0).permutation(np.arange(50).repeat(4)).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: copy.read(i).id, order)) == [f"sample{i}" for i in order]


@pytest.mark.parametrize("kept", [0, 2**28])
def test_row_groups_are_kept_up_to_a_number_of_bytes(tmp_path: Path, monkeypatch, kept) -> None:
    split = write(tmp_path / "shards").split("train")
    monkeypatch.setattr(shard_split, "CACHED_BYTES", kept)
    reads = []
    own = pq.ParquetFile.read_row_group

    def counted(file, group, **options):
        reads.append(group)
        return own(file, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    order = np.random.default_rng(0).permutation(len(split))
    for index in order:
        image, mask = split.decode(int(index))
        assert (image == index).all()
        assert (mask is None) == (index % 10 == 0)
    assert len(split._groups) == (5 if kept else 1)
    assert len(reads) == 5 if kept else len(reads) > 10


def test_split_survives_a_fork(tmp_path: Path) -> None:
    train = write(tmp_path / "toy").split("train")
    train.read(0)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if train.read(40) == make_row(40) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert train.read(41) == make_row(41)


def test_raw_images_are_arrays(tmp_path: Path) -> None:
    row = make_row(5, "raw")
    splits = {"train": [row]}
    write_shards(tmp_path / "raw", META, splits=splits, encode=lambda r: r)
    image, _ = open_shards(tmp_path / "raw").split("train").decode(0)
    assert (image == 5).all()


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="rows_per_shard is 0"):
        write_shards(tmp_path / "x", META, splits={}, encode=make_row, rows_per_shard=0)
    with pytest.raises(OptionError, match="unknown split 'dev'"):
        write_shards(tmp_path / "x", META, splits={"dev": [1]}, encode=make_row)
    with pytest.raises(UnknownNameError, match="did you mean 'train'"):
        write(tmp_path / "x").split("trein")
    with pytest.raises(IndexError):
        open_shards(tmp_path / "x").split("val").read(3)


def test_no_shards_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no shards in .*run the prepare stage"):
        open_shards(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="no manifest"):
        open_shards(tmp_path)


def test_corrupt_shard_is_named(tmp_path: Path) -> None:
    dataset = write(tmp_path / "toy")
    file = dataset.path / "train" / "part-00001.parquet"
    content = bytearray(file.read_bytes())
    at = content.index(make_row(25).image[60:]) + 3
    content[at] ^= 255
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"part-00001\.parquet: sha256"):
        verify_shards(dataset.path)
    with pytest.raises(DataError, match=r"corrupt shard .*train/part-00001\.parquet"):
        dataset.split("train").read(25)
    assert dataset.split("train").read(5) == make_row(5)
    file.write_bytes(content[:-10])
    with pytest.raises(DataError, match=r"part-00001\.parquet: \d+ bytes, expected"):
        open_shards(dataset.path)
    file.unlink()
    with pytest.raises(DataError, match="the file is missing"):
        open_shards(dataset.path)


def test_hugging_face_datasets_decodes_images(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = write(tmp_path / "toy").path
    files = {split: f"{path}/{split}/*.parquet" for split in ("train", "val")}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert loaded["train"].num_rows == 50
    row = loaded["train"][7]
    assert row["image"].size == (8, 6)
    assert np.asarray(row["image"]).max() == 7
    assert np.unique(np.asarray(row["mask"])).tolist() == [0, 1]
    assert row["instances"][0]["bbox"] == [1.0, 2.0, 5.0, 2.0]
    assert loaded["train"][0]["mask"] is None
    assert row["labels"] == [0, 1]


def test_duckdb_reads_nested_columns(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    path = write(tmp_path / "toy").path
    query = (
        "select id, octet_length(image.bytes), instances[1].category, instances[1].bbox[3] "
        f"from '{path}/train/*.parquet' where list_contains(labels, 1) order by id limit 1"
    )
    expected = ("sample1", len(make_row(1).image), 1, 5.0)
    assert duckdb.sql(query).fetchall() == [expected]


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_shards
def slow(number):
    time.sleep(0.02)
    return test_shards.make_row(number)
print("ready", flush=True)
test_shards.write_shards(Path(sys.argv[2]), test_shards.META, splits={"train": range(1000)},
                         encode=slow, rows_per_shard=16)
"""


def test_killed_writer_leaves_nothing_taken_for_whole(tmp_path: Path) -> None:
    path = tmp_path / "toy"
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    while not list(tmp_path.glob(".toy.*.partial/train/part-00001.parquet")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not path.exists()
    with pytest.raises(DataError, match="no shards"):
        open_shards(path)
    write(path)
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]


def test_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes write(2) fail as a full disk or quota does."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\nimport test_shards\n"
        "from segcore.errors import DataError\n"
        "try: test_shards.write(Path(sys.argv[2]))\n"
        "except DataError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "toy")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=True)
    assert "cannot write" in done.stdout
    assert "File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_full_filesystem_keeps_the_old_shards(tmp_path: Path) -> None:
    """A real ENOSPC, on a tmpfs of 100 kB, which needs root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a tmpfs here (needs root)")
    try:
        old = write(disk / "toy", train=20)
        with pytest.raises(DataError, match=r"No space left on device.*free some space"):
            write(disk / "toy", train=500)
        assert [p.name for p in disk.iterdir()] == ["toy"]
        assert verify_shards(disk / "toy").digest == old.digest
    finally:
        subprocess.run(["umount", str(disk)], check=True)
