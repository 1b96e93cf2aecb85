"""Cross-validation over the training split: parts, and a dataset without one."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import segcore
from segcore.data.class_points import CLASS_POINTS, encode_points, read_points
from segcore.data.codec import encode_image, encode_mask
from segcore.data.folds import FoldedDataset, choose_points, fold_rows
from segcore.data.loader import create_loaders
from segcore.data.sample import DatasetInfo
from segcore.data.shapes import ClassShape, measure_shapes
from segcore.data.shard_format import PixelCounts, Row, ShardMeta
from segcore.data.shards import ShardedDataset, write_shards
from segcore.errors import OptionError


def mask_of(name: str) -> np.ndarray:
    """Class 1 is in even pictures alone, on a place of their own."""
    number = int(name[1:])
    mask = np.zeros((32, 32), np.uint8)
    if number % 2 == 0:
        mask[number : number + 4, 8:12] = 1
    return mask


def row(name: str) -> Row:
    image = encode_image(np.full((32, 32, 3), int(name[1:]), np.uint8), "png")
    return Row(
        id=name, image=image, mask=encode_mask(mask_of(name)), instances=None, labels=(0,),
        height=32, width=32, source_sha256=hashlib.sha256(image).hexdigest(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    path = tmp_path_factory.mktemp("folds") / "shards"
    names = [f"t{number:02d}" for number in range(13)]
    meta = ShardMeta(
        info=DatasetInfo(name="d", version="1", classes=("a", "b"), palette=((0, 0, 0),) * 2),
        in_channels=3, size=None, mean=(0.5,) * 3, std=(0.2,) * 3,
        pixel_counts=PixelCounts(pixels=[9, 1], image_pixels=[9, 9], total=10),
    )  # fmt: skip
    points = encode_points([shapes_of(name) for name in names])
    splits = {"train": names, "val": ["v00", "v01"]}
    write_shards(path, meta, splits=splits, encode=row, indices={CLASS_POINTS: points})
    return segcore.open_shards(path)


def shapes_of(name: str) -> list[ClassShape]:
    return measure_shapes(mask_of(name), 2, 255, name)


@given(st.integers(2, 60), st.integers(2, 60), st.integers(0, 5))
def test_parts_hold_every_row_once_and_are_alike_in_size(count: int, folds: int, seed: int) -> None:
    if folds > count:
        with pytest.raises(OptionError, match=f"folds is {folds} for {count} training pictures"):
            fold_rows(count, folds, seed=seed)
        return
    parts = fold_rows(count, folds, seed=seed)
    assert sorted(row for part in parts for row in part) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == fold_rows(count, folds, seed=seed)


def test_one_part_is_no_cross_validation() -> None:
    with pytest.raises(OptionError, match="folds is 1"):
        fold_rows(10, 1, seed=0)


def test_rows_that_are_held_out_are_in_no_batch(dataset: ShardedDataset) -> None:
    names = dataset.split("train").ids
    seen: list[str] = []
    for held in fold_rows(len(names), 3, seed=0):
        rest = FoldedDataset(dataset, held)
        assert rest.digest != dataset.digest
        assert rest.split("val").ids == dataset.split("val").ids
        augment = {"crop": [32, 32], "class_crops": 0.5}
        train, _ = create_loaders(rest, batch_size=3, seed=0, epoch_steps=8, augment=augment)
        drawn = {name for batch in train.epoch(0) for name in batch["id"]}
        out = {names[row] for row in held}
        assert not drawn & out
        assert drawn == set(names) - out
        for name, image in zip(rest.split("train").ids, rows_of(rest), strict=True):
            assert int(image[0, 0, 0]) == int(name[1:])
        seen += out
    assert sorted(seen) == sorted(names)


def rows_of(dataset: ShardedDataset) -> list[np.ndarray]:
    split = dataset.split("train")
    return [split.decode(index)[0] for index in range(len(split))]


def test_two_parts_have_digests_of_their_own(dataset: ShardedDataset) -> None:
    first, second = fold_rows(13, 2, seed=0)
    digests = {FoldedDataset(dataset, rows).digest for rows in (first, second, first)}
    assert len(digests) == 2


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 12), min_size=1))
def test_points_follow_their_rows(rows: set[int]) -> None:
    names = [f"t{number:02d}" for number in range(13)]
    whole = read_points(encode_points([shapes_of(name) for name in names]))
    kept = sorted(rows)
    chosen = choose_points(whole, kept)
    for new, old in enumerate(kept):
        assert chosen.classes_of(new).tolist() == whole.classes_of(old).tolist()
        for index in whole.classes_of(old):
            np.testing.assert_array_equal(
                chosen.points(new, int(index)), whole.points(old, int(index))
            )
    assert len(chosen.row) == sum(len(whole.classes_of(old)) for old in kept)
