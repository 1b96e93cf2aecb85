"""Several streams in one batch: each in an order of its own, sought and shared out like one."""

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feed_toys import META, make_row, toy_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.data.image_labels import StrongView
from segcore.data.shards import Row, ShardedDataset, open_shards, write_shards
from segcore.data.streams import STREAMS, create_streams, stream_seed
from segcore.errors import DataError, OptionError

AUGMENT = {"hflip": 0.5, "crop": [16, 16], "color": 0.2}


def unlabelled_row(item: tuple[int, bool]) -> Row:
    """Of the images without a mask, every third has no known classes either."""
    row = make_row(item)
    if item[0] < 1000 or item[0] % 3 == 0:
        return row
    return replace(row, labels=(1, 3))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    path = tmp_path_factory.mktemp("streams") / "toy"
    numbers = {"train": range(6), "val": range(100, 103), "unlabelled": range(1000, 1015)}
    splits = {name: [(n, False) for n in part] for name, part in numbers.items()}
    write_shards(path, META, splits=splits, encode=unlabelled_row)
    return open_shards(path)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


def test_streams_have_their_images_and_their_own_labels(dataset: ShardedDataset) -> None:
    train, val = create_streams(dataset, streams=STREAMS, batch_size=3, seed=0)
    assert (len(train), len(val)) == (5, 1)  # a pass over the 15 images without a mask
    seen: dict[str, Counter[str]] = {name: Counter() for name in STREAMS}
    for batch in train:
        for name in STREAMS:
            seen[name].update(batch[name]["id"])
        assert batch["labelled"]["target"].shape == (3, 20, 24)
        assert batch["weak"]["target"].tolist() == [[0, 1, 0, 1, 0]] * 3
        known = [int(name[1:]) % 3 != 0 for name in batch["unlabelled"]["id"]]
        assert (batch["unlabelled"]["target"].sum(1) > 0).tolist() == known
    assert set(seen["labelled"]) == {f"s{n}" for n in range(6)}
    assert set(seen["unlabelled"]) == {f"s{n}" for n in range(1000, 1015)}
    assert set(seen["unlabelled"].values()) == {1}
    assert set(seen["weak"]) == {f"s{n}" for n in range(1000, 1015) if n % 3}
    # Ten weak images fill 15 places: none comes more than twice.
    assert max(seen["weak"].values()) == 2


@given(st.integers(0, 5), st.integers(0, 4), st.integers(0, 7), st.sampled_from([0, 2]))
@settings(max_examples=12, deadline=None)
def test_any_step_can_be_begun_at(
    dataset: ShardedDataset, epoch: int, start: int, seed: int, workers: int
) -> None:
    options: dict[str, Any] = {
        "streams": STREAMS, "batch_size": 2, "seed": seed, "augment": AUGMENT, "epoch_steps": 5,
        "strong": StrongView(),
    }  # fmt: skip
    whole = list(create_streams(dataset, **options)[0].epoch(epoch))
    again, _ = create_streams(dataset, workers=workers, **options)
    rest = list(again.epoch(epoch, start))
    assert len(rest) == 5 - start
    assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_ranks_share_each_batch(dataset: ShardedDataset) -> None:
    options: dict[str, Any] = {"streams": STREAMS, "batch_size": 4, "seed": 2, "augment": AUGMENT}
    whole = list(create_streams(dataset, **options)[0].epoch(3))
    shares = [
        list(create_streams(dataset, rank=rank, world_size=2, **options)[0].epoch(3))
        for rank in range(2)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        for name in STREAMS:
            joined = torch.cat([part[name]["image"] for part in parts])
            assert torch.equal(batch[name]["image"], joined)


def test_labelled_images_come_as_without_other_streams(dataset: ShardedDataset) -> None:
    from segcore.data.loader import create_loaders

    options: dict[str, Any] = {"batch_size": 2, "seed": 4, "augment": AUGMENT, "epoch_steps": 6}
    alone, _ = create_loaders(dataset, **options)
    train, _ = create_streams(dataset, streams=["labelled", "unlabelled"], **options)
    for expected, batch in zip(alone.epoch(1), train.epoch(1), strict=True):
        assert same(expected, batch["labelled"])
    seeds = [stream_seed(4, name) for name in STREAMS]
    assert seeds[0] == 4
    assert len(set(seeds)) == 3


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_strong_views_differ_in_colour_alone(
    dataset: ShardedDataset, cache: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"streams": STREAMS, "batch_size": 3, "seed": 0, "epoch_steps": 4}
    plain, _ = create_streams(
        dataset, cache=cache, cache_dir=tmp_path, strong=StrongView(blur_odds=0.0), **options
    )
    changed = 0
    for batch in itertools.chain(plain.epoch(0), plain.epoch(1)):
        weak, strong = batch["unlabelled"]["image"], batch["unlabelled"]["strong"]
        assert strong.dtype == torch.uint8
        assert strong.shape == weak.shape
        changed += int((strong != weak).flatten(1).any(1).sum())
    assert 12 <= changed <= 24
    # Brightness alone is monotonous in each pixel: what was equal stays equal.
    view = StrongView(jitter_odds=1.0, grey_odds=0.0, blur_odds=0.0)
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    image[:, 4:] = 200
    out = view(image, np.random.default_rng(0))
    assert len(out[0, :4].unique()) == len(out[0, 4:].unique()) == 1
    blurred = StrongView(jitter_odds=0.0, grey_odds=0.0, blur_odds=1.0, blur_sigma=(2.0, 2.0))(
        image.expand(3, -1, -1), np.random.default_rng(0)
    )
    assert 0 < int(blurred[0, 3, 4]) < int(blurred[0, 4, 4]) < 200


def test_what_cannot_be_streamed_is_refused(tmp_path: Path, dataset: ShardedDataset) -> None:
    bare = toy_dataset(tmp_path / "bare", 5, 2)
    with pytest.raises(DataError, match=r"without a mask.*labelled_fraction"):
        create_streams(bare, streams=["labelled", "unlabelled"], batch_size=2, seed=0)
    with pytest.raises(DataError, match="classes alone"):
        create_streams(bare, streams=["labelled", "weak"], batch_size=2, seed=0)
    with pytest.raises(OptionError, match="take labelled"):
        create_streams(dataset, streams=["unlabelled"], batch_size=2, seed=0)
    splits = {"train": [(1, True)] * 1, "val": [(2, True)], "unlabelled": [(1004, True)]}
    write_shards(tmp_path / "mixed", META, splits=splits, encode=unlabelled_row)
    mixed = open_shards(tmp_path / "mixed")
    with pytest.raises(DataError, match="2 sizes"):
        create_streams(mixed, streams=["labelled", "unlabelled"], batch_size=1, seed=0)
    create_streams(
        mixed, streams=["labelled", "unlabelled"], batch_size=1, seed=0, augment={"crop": [16, 16]}
    )
