"""The loader: one order for any number of workers, seekable, every validation image once."""

import itertools
import threading
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feed_toys import pixels, toy_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.data.loader import create_loader, create_loaders
from segcore.data.order import ShuffledPlan, ordered_plan, permutation
from segcore.data.rows import decode_row
from segcore.data.shards import ShardedDataset, ShardSplit
from segcore.errors import DataError, OptionError

AUGMENT = {"hflip": 0.5, "color": 0.3, "rotate_deg": 10.0, "translate_px": 3, "scale": [0.7, 1.5]}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    return toy_dataset(tmp_path_factory.mktemp("uniform") / "toy")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    return toy_dataset(tmp_path_factory.mktemp("mixed") / "toy", mixed=True)


def assert_equal(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    assert [batch["id"] for batch in left] == [batch["id"] for batch in right]
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a["image"], b["image"], rtol=0, atol=0)
        torch.testing.assert_close(a["target"], b["target"], rtol=0, atol=0)


def test_batches_hold_the_stored_pixels(dataset: ShardedDataset) -> None:
    train, val = create_loaders(dataset, batch_size=4, seed=0)
    assert (len(train), len(val)) == (5, 2)
    for batch in itertools.chain(train, val):
        assert batch["image"].dtype == torch.uint8
        assert batch["target"].dtype == torch.int64
        for name, image, target in zip(batch["id"], batch["image"], batch["target"], strict=True):
            expected, mask = pixels(int(name[1:]), (20, 24))
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)
            np.testing.assert_array_equal(target.numpy(), mask)


def test_decoded_rows_may_be_written_to(dataset: ShardedDataset) -> None:
    files = [file for file in dataset.files if file["path"].startswith("train/")]
    for channels in (1, 3):
        split = ShardSplit(dataset.path, files, channels)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch's, of arrays that are not writable
            image, mask = decode_row(split, 0)
        assert image.shape == (channels, *mask.shape)
        assert image.is_contiguous()
        assert image.numpy().flags.writeable
        assert mask.numpy().flags.writeable


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_see_the_batches_of_one(dataset: ShardedDataset, world_size: int) -> None:
    options: dict[str, Any] = {"batch_size": 8, "seed": 3, "augment": AUGMENT}
    single = list(create_loaders(dataset, **options)[0].epoch(2))
    ranks = [
        list(create_loaders(dataset, **options, rank=r, world_size=world_size)[0].epoch(2))
        for r in range(world_size)
    ]
    joined = [
        {
            "id": [name for part in parts for name in part["id"]],
            "image": torch.cat([part["image"] for part in parts]),
            "target": torch.cat([part["target"] for part in parts]),
        }
        for parts in zip(*ranks, strict=True)
    ]
    assert_equal(joined, single)


@given(
    size=st.integers(1, 60),
    local=st.integers(1, 5),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_repeats_no_row(
    size: int, local: int, world_size: int, seed: int, epoch: int
) -> None:
    batch = local * world_size
    plans = [ShuffledPlan(size, batch, seed, rank, world_size) for rank in range(world_size)]
    rows = [plan.epoch(epoch)(step) for plan in plans for step in range(plan.steps)]
    counts = Counter(np.concatenate(rows).tolist())
    assert sum(counts.values()) == max(1, size // batch) * batch
    assert set(counts) <= set(range(size))
    if size >= batch:
        assert max(counts.values()) == 1
    else:
        assert set(counts) == set(range(size))


def test_order_differs_by_seed_and_epoch_and_is_fixed() -> None:
    orders = {(s, e): tuple(permutation(50, s, e)) for s in range(3) for e in range(3)}
    assert len(set(orders.values())) == 9
    assert permutation(8, 0, 0).tolist() == permutation(8, 0, 0).tolist()
    assert permutation(8, 1, 2).tolist() == [6, 7, 2, 3, 0, 5, 1, 4]


@pytest.mark.parametrize("workers", [0, 2])
def test_seek_equals_iteration(dataset: ShardedDataset, workers: int) -> None:
    options: dict[str, Any] = {"batch_size": 4, "seed": 1, "augment": AUGMENT, "workers": workers}
    whole = list(create_loaders(dataset, **options)[0].epoch(7))
    for start in range(6):
        rest = list(create_loaders(dataset, **options)[0].epoch(7, start))
        assert_equal(rest, whole[start:])


def test_seek_reads_nothing_of_what_it_skips(dataset: ShardedDataset) -> None:
    train, _ = create_loaders(dataset, batch_size=4, seed=1, world_size=2)
    next(train.epoch(0, 4))
    assert train.rows.ready.sum() == 2


def test_threads_change_no_pixel(dataset: ShardedDataset) -> None:
    options: dict[str, Any] = {"batch_size": 4, "seed": 1, "augment": AUGMENT}
    for workers in (1, 3):
        ours = create_loaders(dataset, **options, workers=workers)
        inline = create_loaders(dataset, **options)
        assert_equal(list(ours[0].epoch(1)), list(inline[0].epoch(1)))
        assert_equal(list(ours[1]), list(inline[1]))


def test_leaving_an_epoch_early_ends_its_threads(dataset: ShardedDataset) -> None:
    train, _ = create_loaders(dataset, batch_size=4, seed=1, workers=2)
    before = threading.active_count()
    batches = train.epoch(0)
    next(batches)
    batches.close()
    assert threading.active_count() == before
    assert len(list(train.epoch(0))) == 5


def test_augmentation_changes_with_the_epoch_only(dataset: ShardedDataset) -> None:
    train, val = create_loaders(dataset, batch_size=4, seed=1, augment=AUGMENT)
    again, plain = create_loaders(dataset, batch_size=4, seed=1)
    assert_equal(list(val), list(plain))
    assert_equal(list(train.epoch(0)), list(train.epoch(0)))
    images = {
        (name, epoch): image
        for epoch in (0, 1)
        for batch in train.epoch(epoch)
        for name, image in zip(batch["id"], batch["image"], strict=True)
    }
    both = [name for name, epoch in images if epoch == 0 and (name, 1) in images]
    assert both
    assert not any(torch.equal(images[name, 0], images[name, 1]) for name in both)
    assert len(list(again.epoch(0))) == 5


@pytest.mark.parametrize("world_size", [1, 2, 3, 9])
@pytest.mark.parametrize("which", ["dataset", "mixed"])
def test_validation_sees_each_image_once(
    world_size: int, which: str, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue(which)
    seen: Counter[str] = Counter()
    for rank in range(world_size):
        _, val = create_loaders(
            data, batch_size=9 * world_size, seed=0, rank=rank, world_size=world_size,
            augment={"crop": [8, 8]}, val_batch_size=4,
        )  # fmt: skip
        batches = list(val)
        assert len(batches) == len(val)
        assert all(len(batch["id"]) <= 4 for batch in batches)
        seen.update(name for batch in batches for name in batch["id"])
    assert seen == Counter(data.split("val").ids)


def test_ordered_plan_never_mixes_sizes(mixed: ShardedDataset) -> None:
    sizes = mixed.split("train").sizes
    plan = ordered_plan(sizes, 4, 0, 1)
    for step in range(plan.steps):
        assert len({sizes[row] for row in plan.epoch(0)(step)}) == 1


def test_create_loader_reads_a_split_in_order(dataset: ShardedDataset) -> None:
    split = dataset.split("val")
    loader = create_loader(split, batch_size=3, workers=1)
    assert [name for batch in loader for name in batch["id"]] == split.ids
    ranks = [create_loader(split, batch_size=3, rank=r, world_size=2) for r in range(2)]
    assert sorted(n for r in ranks for b in r for n in b["id"]) == sorted(split.ids)


def test_crop_makes_one_size_of_many(mixed: ShardedDataset) -> None:
    train, _ = create_loaders(mixed, batch_size=4, seed=0, augment={"crop": [12, 40]})
    for batch in train:
        assert batch["image"].shape == (4, 3, 12, 40)
        assert batch["target"].shape == (4, 12, 40)


def test_small_split_fills_one_batch_by_repeating(tmp_path: Path) -> None:
    train, _ = create_loaders(toy_dataset(tmp_path / "toy", train=3), batch_size=8, seed=0)
    assert len(train) == 1
    (batch,) = train
    assert len(batch["id"]) == 8
    assert set(batch["id"]) == {"s0", "s1", "s2"}


def test_no_validation_rows_make_no_batches(tmp_path: Path) -> None:
    for cache in ("none", "ram", "disk"):
        dataset = toy_dataset(tmp_path / "toy", val=0)
        _, val = create_loaders(dataset, batch_size=4, seed=0, cache=cache, cache_dir=tmp_path)
        assert list(val) == []


def test_unlike_sizes_without_crop_are_refused(mixed: ShardedDataset) -> None:
    with pytest.raises(DataError, match=r"3 sizes.*train\.augment\.crop.*data\.size"):
        create_loaders(mixed, batch_size=4, seed=0, augment={"hflip": 0.5})
    assert len(create_loaders(mixed, batch_size=1, seed=0)[0]) == 23


def test_unlabelled_and_missing_rows_are_refused(tmp_path: Path) -> None:
    unlabelled = toy_dataset(tmp_path / "unlabelled", first=1000)
    for cache in ("none", "ram", "disk"):
        with pytest.raises(DataError, match=r"'s10\d\d' has no mask"):
            list(create_loaders(unlabelled, batch_size=4, seed=0, cache=cache,
                                cache_dir=tmp_path)[0])  # fmt: skip
    with pytest.raises(DataError, match="'train' is empty"):
        create_loaders(toy_dataset(tmp_path / "empty", train=0), batch_size=4, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 5, "world_size": 2}, "batch_size 5 cannot be shared.*2 workers: take 6"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": -1}, "workers is -1"),
        ({"rank": 2, "world_size": 2}, "rank is 2"),
        ({"val_batch_size": 0}, "val_batch_size is 0"),
        ({"cache": "disc"}, "cache is 'disc'; known: none, ram, disk"),
        ({"cache": "disk"}, "no cache_dir"),
        ({"augment": {"hflp": 0.5}}, "'hflp'; did you mean 'hflip'"),
    ],
)
def test_bad_options_are_named(
    dataset: ShardedDataset, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        create_loaders(dataset, **{"batch_size": 4, "seed": 0, **options})


def test_seek_beyond_the_epoch_is_refused(dataset: ShardedDataset) -> None:
    train, _ = create_loaders(dataset, batch_size=4, seed=0)
    assert list(train.epoch(0, 5)) == []
    with pytest.raises(OptionError, match="cannot start at step 6: it has 5 steps"):
        train.epoch(0, 6)
