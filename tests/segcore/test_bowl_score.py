"""The Bowl's score of nuclei: by hand, one to one, under weights."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.errors import OptionError
from segcore.metrics import BowlRecord, BowlScore, match_bowl, weighted_bowl


def objects(*rows: str, **fields: Any) -> dict[str, Any]:
    """Masks of one row each, '#' inside."""
    masks = torch.tensor([[[pixel == "#" for pixel in row]] for row in rows], dtype=torch.uint8)
    return {"masks": masks.reshape(len(rows), 1, -1)} | {
        name: torch.tensor(value) for name, value in fields.items()
    }


def dsb(pred: dict[str, Any], target: dict[str, Any]) -> float:
    metric = BowlScore()
    metric.update([pred], [target])
    return metric.compute()["dsb"]


def test_score_by_hand() -> None:
    """IoU 3/4 and 1: both count at 0.50..0.70, one at the five above (0.75 itself is not above)."""
    target = objects("####......", ".....###..")
    pred = objects(".###......", ".....###..", ".........#")
    both, one = 2 / 3, 1 / 4  # of two objects and three guesses
    assert dsb(pred, target) == pytest.approx((5 * both + 5 * one) / 10)
    assert dsb(target, target) == 1


def test_images_are_averaged_not_objects() -> None:
    target, nothing = objects("##..", "..##"), {"masks": torch.zeros(0, 1, 4)}
    records = [match_bowl(target, target), match_bowl(nothing, target)]
    assert [record.fn.tolist()[0] for record in records] == [0, 2]
    assert weighted_bowl(records, [[1, 1], [3, 1], [0, 2]])["dsb"].tolist() == [0.5, 0.75, 0]
    assert np.isnan(weighted_bowl(records, [[0, 0]])["dsb"][0])


def test_nothing_to_find() -> None:
    nothing = {"masks": torch.zeros(0, 1, 4)}
    assert dsb(nothing, nothing) == 1
    assert dsb(objects("##.."), nothing) == 0
    assert math.isnan(BowlScore().compute()["dsb"])


def test_one_object_is_found_once() -> None:
    record = match_bowl(objects("###.", ".###"), objects("####"))
    assert (record.tp[0], record.fp[0], record.fn[0]) == (1, 1, 0)


def test_uncertain_objects_do_not_count_and_crowds_forgive() -> None:
    target = objects("###...", "...###", iscrowd=[0, 1])
    pred = objects("###...", "....##", "#.....", scores=[0.9, 0.8, 0.4])
    assert dsb(pred, target) == 1
    assert match_bowl(pred, target, min_score=0.3).fp[0] == 1
    with pytest.raises(OptionError, match="min_score is 7"):
        BowlScore(min_score=7)


def most_pairs(fits: np.ndarray) -> int:
    """Size of the largest one-to-one pairing, by trying all."""
    small, large = sorted(fits.shape)
    table = fits if fits.shape[0] == small else fits.T
    tried = itertools.permutations(range(large), small)
    return max(sum(table[i, j] for i, j in enumerate(chosen)) for chosen in tried)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_counts_are_those_of_the_best_pairing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (rng.random((rng.integers(1, 5), 1, 5)) < 0.7 for _ in range(2))
    shared, union = (first[:, None] & second).sum((2, 3)), (first[:, None] | second).sum((2, 3))
    iou = shared / np.maximum(union, 1)
    record = match_bowl({"masks": first}, {"masks": second})
    for t, threshold in enumerate(np.linspace(0.5, 0.95, 10)):
        pairs = most_pairs(iou > threshold)
        counts = (record.tp[t], record.fp[t], record.fn[t])
        assert counts == (pairs, len(first) - pairs, len(second) - pairs)


def test_workers_add_up() -> None:
    target, pred = objects("##..", "..##"), objects("##..")
    whole, part = BowlScore(), BowlScore()
    whole.update([pred, target], [target, target])
    part.update([pred], [target])
    rest = [match_bowl(target, target).to_bytes()]
    part.merge([part.state(), rest])
    assert part.compute() == whole.compute() == {"dsb": 0.75}
    assert BowlRecord.from_bytes(rest[0]).tp.tolist() == [2] * 10
