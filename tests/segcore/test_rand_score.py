"""Rand score of regions: by hand, against counted pairs, merged."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.errors import ShapeError
from segcore.metrics import RandScore
from segcore.metrics.rand import pair_counts

labels = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12)


@given(labels)
@settings(max_examples=50, deadline=None)
def test_pairs_are_those_that_can_be_counted(pairs: list[tuple[int, int]]) -> None:
    first, second = (np.array(column) for column in zip(*pairs, strict=True))
    counted = np.zeros(3)
    for i, j in itertools.product(range(len(pairs)), repeat=2):
        same = (first[i] == first[j], second[i] == second[j])
        counted += (all(same), *same)
    assert pair_counts(first, second).tolist() == counted.tolist()


def cells(*walls: int, width: int = 12) -> torch.Tensor:
    """A map [1, 4, width] of cells (1) between upright walls (0)."""
    target = torch.ones(1, 4, width, dtype=torch.int64)
    target[..., list(walls)] = 0
    return target


def test_a_lost_wall_merges_and_a_false_one_splits() -> None:
    metric = RandScore()
    metric.update(cells(5), cells(5))
    assert metric.compute() == {"rand_score": 1.0, "rand_precision": 1.0, "rand_recall": 1.0}
    merged = RandScore()
    merged.update(cells(), cells(5))  # cells of 5 and 6 columns become one
    both, together = 5**2 + 6**2, 11**2
    assert merged.compute()["rand_precision"] == pytest.approx(both / together)
    assert merged.compute()["rand_recall"] == 1.0
    assert merged.compute()["rand_score"] == pytest.approx(2 * both / (together + both))
    split = RandScore()
    split.update(cells(5, 6), cells())  # the walls' two columns join a side each: 6 and 6
    assert split.compute()["rand_precision"] == 1.0
    assert split.compute()["rand_recall"] == pytest.approx((6**2 + 6**2) / 12**2)


def test_width_and_place_of_a_wall_do_not_matter_within_its_true_width() -> None:
    for predicted in (cells(5), cells(6), cells(5, 6, 7), cells(4, 5, 6)):
        metric = RandScore()
        metric.update(predicted, cells(5, 6))
        assert metric.compute()["rand_score"] > 0.9
    metric.update(cells(), cells(5, 6))
    assert metric.compute()["rand_score"] < 0.9


def test_regions_of_two_images_are_never_the_same() -> None:
    prediction, target = cells(5).repeat(2, 1, 1), cells(3).repeat(2, 1, 1)
    whole, one = RandScore(), RandScore()
    whole.update(prediction, target)
    one.update(prediction[:1], target[:1])
    assert whole.compute() == pytest.approx(one.compute())
    merged = RandScore()
    merged.merge([one.state(), one.state()])
    assert merged.compute() == pytest.approx(whole.compute())


def test_nothing_but_border() -> None:
    metric = RandScore()
    metric.update(cells(), torch.zeros_like(cells()))
    assert math.isnan(metric.compute()["rand_score"])
    metric.update(torch.zeros_like(cells()), cells(5))  # no region predicted: all is one
    assert metric.compute()["rand_recall"] == 1.0


def test_ignored_pixels_do_not_count() -> None:
    target = cells(5)
    target[..., 6:] = 255
    metric = RandScore()
    metric.update(cells(5, 9), target)
    assert metric.compute()["rand_score"] == 1.0


def test_refuses_what_it_cannot_score() -> None:
    with pytest.raises(ShapeError, match="class ids"):
        RandScore().update(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4))
