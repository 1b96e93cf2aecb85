"""Masks hidden for experiments: before anything is derived from them, and always the same ones."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.data.few_labels import hide_labels
from segcore.data.inspection import Inspection
from segcore.data.prepare import Validation, validate, write
from segcore.data.sample import DatasetInfo, Sample
from segcore.data.shards import open_shards
from segcore.datasets import create_dataset
from segcore.datasets.base import DataSource
from segcore.errors import OptionError

INFO = DatasetInfo("toy", "1", ("a", "b", "c"), ((0, 0, 0),) * 3)


def made_up(classes: list[list[int]]) -> Validation:
    """Training images with these classes, and one of val."""
    samples, found = [], []
    for number, present in enumerate([*classes, [0]]):
        split = "train" if number < len(classes) else "val"
        values = np.zeros(256, np.int64)
        values[present] = 5
        samples.append(Sample(f"s{number}", split, b"", mask=b"m"))
        found.append(Inspection((), values=values, size=(4, 4)))
    return Validation(INFO, tuple(samples), tuple(found), (), 0)


def labelled(validation: Validation) -> set[str]:
    return {sample.id for sample in validation.samples if sample.split == "train"}


images = st.lists(st.lists(st.integers(0, 2), max_size=3), min_size=1, max_size=30)


@given(images, st.floats(0.01, 1.0), st.floats(0.01, 1.0), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_fractions_are_nested(
    classes: list[list[int]], one: float, other: float, seed: int
) -> None:
    whole = made_up(classes)
    few, more = (labelled(hide_labels(whole, fraction=f, seed=seed)) for f in sorted((one, other)))
    assert few <= more
    assert max(1, min(one, other) * len(classes) - 1e-3) <= len(few)
    assert len(few) <= min(one, other) * len(classes) + 1


@given(images, st.integers(1, 4), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_every_class_keeps_its_images(classes: list[list[int]], count: int, seed: int) -> None:
    if not any(classes):
        return
    kept = labelled(hide_labels(made_up(classes), per_class=count, seed=seed))
    for index in range(3):
        holders = {f"s{n}" for n, present in enumerate(classes) if index in present}
        assert len(holders & kept) >= min(count, len(holders))
    assert len(kept) <= 3 * count
    assert kept <= labelled(hide_labels(made_up(classes), per_class=count + 1, seed=seed))


def test_hidden_images_keep_their_classes_alone() -> None:
    whole = made_up([[0, 2], [1], [0], [2]])
    hidden = hide_labels(whole, fraction=0.25, seed=1)
    assert len(labelled(hidden)) == 1
    assert hidden.samples[-1] == whole.samples[-1]
    for sample, found, (before, _) in zip(
        hidden.samples, hidden.found, zip(whole.samples, whole.found, strict=True), strict=True
    ):
        if sample.split == "unlabelled":
            assert (sample.mask, sample.instances, found.values) == (None, None, None)
            assert sample.labels == {"s0": (0, 2), "s1": (1,), "s2": (0,), "s3": (2,)}[before.id]
    seeds = {frozenset(labelled(hide_labels(whole, fraction=0.25, seed=s))) for s in range(12)}
    assert len(seeds) > 1
    assert hide_labels(whole) is whole


def test_wrong_options_are_refused() -> None:
    whole = made_up([[0], [1]])
    with pytest.raises(OptionError, match="set one to null"):
        hide_labels(whole, fraction=0.5, per_class=1)
    with pytest.raises(OptionError, match="labelled_fraction is 0"):
        hide_labels(whole, fraction=0.0)
    with pytest.raises(OptionError, match="labelled_per_class is 0"):
        hide_labels(whole, per_class=0)


def test_shards_know_nothing_of_what_is_hidden(tmp_path: Path) -> None:
    """Statistics, class points and the plan's facts are those of the labelled images alone."""
    sizes = {"num_train": 10, "num_val": 1, "num_test": 1, "height": 48, "width": 64}
    source = create_dataset("streets", DataSource(raw=tmp_path / "raw", options=sizes))
    source.download()
    whole = validate(source, workers=1)
    digests = set()
    for fraction in (0.3, 1.0):
        few = hide_labels(whole, fraction=fraction)
        write(few, tmp_path / "shards", workers=1)
        dataset = open_shards(tmp_path / "shards")
        train, rest = dataset.split("train"), dataset.split("unlabelled")
        assert (len(train), len(rest)) == (round(10 * fraction), round(10 - 10 * fraction))
        masks = [train.decode(row)[1] for row in range(len(train))]
        pixels = sum(np.bincount(mask.ravel(), minlength=256) for mask in masks if mask is not None)
        counts = dataset.pixel_counts["pixels"]
        assert counts == pixels[: dataset.num_classes].tolist()
        assert dataset.fingerprint["images"]["train"] == len(train)
        assert set(dataset.class_points().row.tolist()) <= set(range(len(train)))
        digests.add(dataset.digest)
        for row in range(len(rest)):
            stored = rest.read(row)
            assert (stored.mask, stored.instances) == (None, None)
            assert stored.labels
            assert rest.labels[row] == list(stored.labels)
    assert len(digests) == 2
