"""Decoded images kept in memory or in a file: the same pixels, built once, never half."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feed_toys import toy_dataset

from segcore.data import cache as cache_module
from segcore.data.cache import DiskCache, check_memory, open_rows
from segcore.data.loader import create_loaders
from segcore.data.rows import Layout, Split
from segcore.data.shards import ShardedDataset, ShardSplit
from segcore.errors import DataError, OptionError

OPTIONS: dict[str, Any] = {"batch_size": 4, "seed": 0}

BUILDER = """
import sys
from pathlib import Path
from segcore.data.cache import DiskCache
from segcore.data.rows import Layout
from segcore.data.shards import ShardSplit, open_shards

decode = ShardSplit.decode
def logged(self, index):
    with open(sys.argv[3], "a") as log:
        log.write(f"{index}\\n")
    return decode(self, index)
ShardSplit.decode = logged

split = open_shards(sys.argv[1]).split("train")
file = DiskCache(Path(sys.argv[2]), "toy-train", "x", Layout(split.sizes, channels=3))
print("ready", flush=True)
sys.stdin.readline()
file.ensure(split, 1)
"""


class Counting:
    """A real split that counts how often its rows are decoded."""

    def __init__(self, split: ShardSplit) -> None:
        self.split = split
        self.ids, self.sizes = split.ids, split.sizes
        self.decoded: list[int] = []

    def __len__(self) -> int:
        return len(self.split)

    def decode(self, index: int) -> Any:
        self.decoded.append(index)
        return self.split.decode(index)


def open_toy(split: Split, folder: Path, *, cache: str = "disk", digest: str = "x") -> Any:
    layout = Layout(split.sizes, channels=3)
    return open_rows(split, layout, cache=cache, cache_dir=folder, name="toy", digest=digest)


def assert_same_rows(rows: Any, split: Split) -> None:
    for index in range(len(split)):
        image, mask = rows.read(index)
        expected, labels = split.decode(index)
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)
        np.testing.assert_array_equal(mask.numpy(), labels)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    return toy_dataset(tmp_path_factory.mktemp("uniform") / "toy")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    return toy_dataset(tmp_path_factory.mktemp("mixed") / "toy", mixed=True)


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
@pytest.mark.parametrize("which", ["dataset", "mixed"])
def test_every_cache_gives_the_stored_rows(
    cache: str, which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    split = request.getfixturevalue(which).split("train")
    rows = open_toy(split, tmp_path, cache=cache)
    assert_same_rows(rows, split)
    same = np.flatnonzero([size == split.sizes[0] for size in split.sizes])[[2, 0, 1]]
    images, masks = rows.gather(same)
    for number, row in enumerate(same):
        assert torch.equal(images[number], rows.read(row)[0])
        assert torch.equal(masks[number], rows.read(row)[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_the_cache(
    dataset: ShardedDataset, tmp_path: Path, workers: int
) -> None:
    augment = {"hflip": 0.5, "color": 0.2, "crop": [16, 16]}
    batches = {}
    for cache in ("none", "ram", "disk"):
        train, _ = create_loaders(
            dataset, **OPTIONS, cache=cache, cache_dir=tmp_path, workers=workers, augment=augment
        )
        batches[cache] = [batch for epoch in (0, 1) for batch in train.epoch(epoch)]
    for cache in ("ram", "disk"):
        for ours, plain in zip(batches[cache], batches["none"], strict=True):
            assert torch.equal(ours["image"], plain["image"])
            assert torch.equal(ours["target"], plain["target"])


@pytest.mark.parametrize(("cache", "times"), [("none", 2), ("ram", 1), ("disk", 1)])
def test_rows_are_decoded_once_where_they_are_kept(
    dataset: ShardedDataset, tmp_path: Path, cache: str, times: int
) -> None:
    split = Counting(dataset.split("train"))
    rows = open_toy(split, tmp_path, cache=cache)
    everything = np.arange(len(split))
    rows.gather(everything)
    rows.gather(everything)
    assert sorted(split.decoded) == sorted([*everything] * times)


def test_memory_cache_decodes_neighbours_together_and_once(dataset: ShardedDataset) -> None:
    split = Counting(dataset.split("train"))
    layout = Layout(split.sizes, channels=3)
    rows = open_rows(split, layout, cache="ram", threads=2, block=8)
    rows.gather(np.array([3, 21]))
    assert sorted(split.decoded) == [*range(8), *range(16, 23)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(rows.gather, np.random.default_rng(0).permutation(22).reshape(11, 2)))
    assert sorted(split.decoded) == list(range(23))
    assert_same_rows(rows, dataset.split("train"))


def test_augmentation_leaves_what_is_kept(dataset: ShardedDataset) -> None:
    train, _ = create_loaders(dataset, **OPTIONS, augment={"hflip": 1.0, "color": 0.9})
    for epoch in range(3):
        for batch in train.epoch(epoch):
            batch["image"].zero_()
    split = dataset.split("train")
    for index in np.flatnonzero(train.rows.ready):
        expected, _ = split.decode(int(index))
        np.testing.assert_array_equal(train.rows.read(index)[0].permute(1, 2, 0), expected)


def test_second_opening_decodes_nothing(mixed: ShardedDataset, tmp_path: Path) -> None:
    open_toy(mixed.split("train"), tmp_path)
    split = Counting(mixed.split("train"))
    assert_same_rows(open_toy(split, tmp_path), mixed.split("train"))
    assert split.decoded == []


def test_new_shards_make_a_new_file_and_remove_the_old(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    for first in (0, 30):
        dataset = toy_dataset(tmp_path / "toy", first=first)
        train, _ = create_loaders(dataset, **OPTIONS, cache="disk", cache_dir=folder)
        assert_same_rows(train.rows, dataset.split("train"))
        assert len(list(folder.glob("toy-train-*.cache"))) == 1
        assert len(list(folder.glob("toy-val-*.cache"))) == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "long"])
def test_file_of_wrong_length_or_header_is_built_again(
    dataset: ShardedDataset, tmp_path: Path, damage: str
) -> None:
    split = dataset.split("train")
    open_toy(split, tmp_path)
    (path,) = tmp_path.glob("*.cache")
    whole = path.read_bytes()
    bad = {
        "cut": whole[:-1000],
        "empty": b"",
        "header": b"x" * 32 + whole[32:],
        "long": whole + b"x",
    }
    path.write_bytes(bad[damage])
    assert_same_rows(open_toy(split, tmp_path), split)
    assert path.read_bytes() == whole


def test_row_that_rotted_on_disk_is_decoded_again(dataset: ShardedDataset, tmp_path: Path) -> None:
    split = Counting(dataset.split("train"))
    open_toy(split, tmp_path)
    (path,) = tmp_path.glob("*.cache")
    content = bytearray(path.read_bytes())
    content[4096 + 3 * 20 * 24 * 5 + 7] ^= 1
    path.write_bytes(content)
    split.decoded.clear()
    assert_same_rows(open_toy(split, tmp_path), dataset.split("train"))
    assert split.decoded == [5]


def test_processes_that_build_at_once_build_one_file(
    dataset: ShardedDataset, tmp_path: Path
) -> None:
    log, folder = tmp_path / "log", tmp_path / "cache"
    command = [sys.executable, "-c", BUILDER, str(dataset.path), str(folder), str(log)]
    builders = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    for builder in builders:
        assert builder.stdout is not None
        assert builder.stdout.readline() == b"ready\n"
    for builder in builders:
        builder.communicate(b"go\n", timeout=60)
        assert builder.returncode == 0
    assert sorted(map(int, log.read_text().split())) == list(range(23))
    assert len(list(folder.glob("*.cache"))) == 1
    assert list(folder.glob("*.tmp")) == []


def test_killed_build_leaves_nothing_that_counts(tmp_path: Path) -> None:
    dataset = toy_dataset(tmp_path / "toy", train=600)
    split = dataset.split("train")
    log, folder = tmp_path / "log", tmp_path / "cache"
    command = [sys.executable, "-c", BUILDER, str(dataset.path), str(folder), str(log)]
    builder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert builder.stdout is not None
    assert builder.stdin is not None
    builder.stdout.readline()
    builder.stdin.write(b"go\n")
    builder.stdin.flush()
    while not log.exists() or log.stat().st_size < 20:
        time.sleep(0.001)
    os.kill(builder.pid, signal.SIGKILL)
    builder.wait()
    builder.stdout.close()
    builder.stdin.close()
    assert len(log.read_text().split()) < 600
    file = DiskCache(folder, "toy-train", "x", Layout(split.sizes, channels=3))
    assert not file.is_whole()
    file.ensure(split, 2)
    assert file.is_whole()
    assert list(folder.glob("*.tmp")) == []
    assert_same_rows(file.map(split, 1), split)


def test_full_disk_is_one_clear_error(
    dataset: ShardedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module.os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"No space left on device; .*data\.cache to ram or none"):
        open_toy(dataset.split("train"), tmp_path)
    assert list(tmp_path.glob("*.cache*")) == []


def test_memory_cache_that_cannot_fit_is_refused() -> None:
    check_memory(10**6)
    with pytest.raises(OptionError, match=r"need 1000000\.0 GB .* set data\.cache to disk"):
        check_memory(10**15)
