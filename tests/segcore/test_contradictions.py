"""Regions that contradict a label: by hand, and planted faults among a model's own errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from segcore.errors import ShapeError
from segcore.inference.contradictions import LEAST, OUTLINE_PX, Contradiction, calibrate, judge

CLASSES = 4
VOID = 255


def sure_of(mask: NDArray[np.integer], share: float = 0.9) -> NDArray[np.float64]:
    """Probabilities [K, H, W] of a model that gives each pixel's class `share`."""
    rest = (1 - share) / (CLASSES - 1)
    return np.where(np.arange(CLASSES)[:, None, None] == mask, share, rest)


def find(shares: NDArray[np.floating], label: NDArray[np.integer]) -> list[Contradiction]:
    """As the label's picture alone has them, before what is usual is known."""
    return list(judge(shares, label, ignore_index=VOID).regions)


def test_a_region_is_described() -> None:
    seen = np.zeros((20, 30), np.uint8)
    seen[4:10, 7:16] = 2
    label = np.zeros_like(seen)
    label[4:10, 7:16] = 3
    (found,) = find(sure_of(seen), label)
    assert (found.label, found.predicted, found.area) == (3, 2, 54)
    assert found.box == (4, 7, 10, 16)
    assert found.confidence == pytest.approx(0.9)
    assert found.doubt == pytest.approx(0.1 / 3)
    # 26 pixels on the outline are 1 deep, 18 inside them 2, the other 10 are 3 deep and count whole
    weight = (26 * 1 + 18 * 2 + 10 * 3) / OUTLINE_PX
    assert found.score == pytest.approx((0.9 - 0.1 / 3) * weight / 54**0.5)


def test_where_model_and_label_agree_or_no_label_is_there_is_nothing() -> None:
    mask = np.arange(CLASSES).repeat(25).reshape(10, 10).astype(np.uint8)
    assert find(sure_of(mask), mask) == []
    nothing = np.full((10, 10), VOID, np.uint8)
    assert find(sure_of(mask), nothing) == []
    unknown = np.full((10, 10), CLASSES + 3, np.uint8)  # neither a class nor ignored
    assert find(sure_of(mask), unknown) == []


def test_regions_of_other_classes_and_places_are_apart() -> None:
    label = np.zeros((12, 40), np.uint8)
    seen = label.copy()
    seen[2:8, 2:8], seen[2:8, 8:14], seen[2:8, 30:36] = 1, 2, 1
    found = find(sure_of(seen), label)
    assert sorted((one.predicted, one.box) for one in found) == [
        (1, (2, 2, 8, 8)),
        (1, (2, 30, 8, 36)),
        (2, (2, 8, 8, 14)),
    ]


def test_the_surer_and_the_larger_come_first_and_outlines_last() -> None:
    label = np.zeros((64, 64), np.uint8)
    seen = label.copy()
    seen[2:22, 2:22] = 1  # large
    seen[30:40, 2:12] = 2  # small
    seen[60:62, :] = 3  # as many pixels as 11 x 11, but an outline
    order = [one.predicted for one in find(sure_of(seen), label)]
    assert order == [1, 2, 3]
    unsure = sure_of(seen)
    unsure[:, 2:22, 2:22] = sure_of(seen, 0.3)[:, 2:22, 2:22]
    order = [one.predicted for one in find(unsure, label)]
    assert order[0] == 2


def test_unlike_sizes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(4, 8, 8\), the label is \(8, 9\)"):
        judge(np.zeros((4, 8, 8)), np.zeros((8, 9), np.uint8), ignore_index=VOID)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_regions_cover_what_differs_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = ndimage.gaussian_filter(rng.normal(size=(CLASSES, 24, 24)), (0, 2, 2)) * 20
    shares = np.exp(logits) / np.exp(logits).sum(0)
    label = ndimage.zoom(rng.integers(0, CLASSES, (4, 4)), 6, order=0).astype(np.uint8)
    label[:, 20:] = VOID
    found = find(shares, label)
    wrong = (shares.argmax(0) != label) & (label != VOID)
    assert sum(one.area for one in found) == wrong.sum()
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for one in found:
        assert one.score > 0
        assert 0 <= one.doubt < one.confidence <= 1
        top, left, bottom, right = one.box
        inside = (label == one.label) & (shares.argmax(0) == one.predicted)
        assert inside[top:bottom, left:right].sum() >= one.area
    mirrored = find(shares[..., ::-1], label[:, ::-1])
    assert [one.score for one in mirrored] == pytest.approx([one.score for one in found])


def test_an_unsure_model_counts_less_by_what_is_usual_for_the_class() -> None:
    label = np.zeros((16, 40), np.uint8)
    label[:, 20:] = 1
    usual = judge(sure_of(label, 0.8), label, ignore_index=VOID)
    np.testing.assert_allclose(usual.sureness[:2] / usual.pixels[:2], 0.8)
    assert usual.pixels.tolist() == [320, 320, 0, 0]
    factors = {}
    for share in (0.3, 0.8, 0.95):
        seen = label.copy()
        seen[4:10, 4:10] = 1
        shares = sure_of(label, 0.8)
        shares[:, 4:10, 4:10] = sure_of(seen, share)[:, 4:10, 4:10]
        one = judge(shares, label, ignore_index=VOID)
        many = calibrate([one, *[usual] * 500])
        assert many[1] == ()
        factors[share] = many[0][0].score / one.regions[0].score
    assert factors[0.3] == LEAST
    assert factors[0.8] == pytest.approx(0.5, abs=0.01)
    assert factors[0.95] == 1.0
