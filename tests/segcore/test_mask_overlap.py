"""Packed masks: counts, extents and overlaps against plain numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from segcore.errors import DataError, ShapeError
from segcore.metrics.masks import (
    count_bits,
    count_bits_by_table,
    intersections,
    mask_iou,
    pack_masks,
)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Masks [n, H, W] and [m, H, W], sparse enough for some to be empty or apart."""
    size = draw(st.sampled_from([(1, 1), (3, 64), (5, 65), (7, 130)]))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    first, second = (
        rng.random((draw(st.integers(0, 4)), *size)) < rng.choice([0.01, 0.3, 1.0]) for _ in "ab"
    )
    return first, second


@given(pairs())
@settings(max_examples=60, deadline=None)
def test_overlaps_are_those_of_plain_counting(masks: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = masks
    a, b = pack_masks(first), pack_masks(torch.from_numpy(second))
    assert a.areas.tolist() == first.sum((1, 2)).tolist()
    shared = (first[:, None] & second).sum((2, 3))
    np.testing.assert_array_equal(intersections(a, b), shared)
    crowd = np.arange(len(second)) % 2 == 1
    union = np.where(crowd, first.sum((1, 2))[:, None], (first[:, None] | second).sum((2, 3)))
    np.testing.assert_array_equal(mask_iou(a, b, crowd), shared / np.maximum(union, 1))


def test_packed_masks_are_taken_as_they_are() -> None:
    masks = torch.rand(5, 7, 70) > 0.5
    packed, chosen = pack_masks(masks), np.array([3, 1])
    assert pack_masks(packed) is packed
    again, expected = pack_masks(packed, chosen), pack_masks(masks[chosen])
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(again, name), value)


@given(arrays.arrays(np.uint64, st.tuples(*[st.integers(0, 4)] * 3)))
@settings(max_examples=30, deadline=None)
def test_both_ways_of_counting_bits_agree(words: np.ndarray) -> None:
    expected = [sum(int(word).bit_count() for word in mask.ravel()) for mask in words]
    assert count_bits(words).tolist() == expected
    assert count_bits_by_table(words).tolist() == expected


def test_probabilities_are_inside_above_a_half() -> None:
    masks = torch.tensor([0.2, 0.5, 0.51, 1.0]).view(1, 1, 2, 2)
    assert pack_masks(masks).areas.tolist() == [2]
    assert pack_masks(masks.bfloat16()).areas.tolist() == [2]


def test_masks_that_do_not_fit_are_named() -> None:
    with pytest.raises(ShapeError, match=r"masks are \(4, 4\)"):
        pack_masks(torch.zeros(4, 4))
    with pytest.raises(ShapeError, match=r"an image \(4, 4\), true ones of \(4, 5\)"):
        intersections(pack_masks(torch.ones(1, 4, 4)), pack_masks(torch.ones(1, 4, 5)))
    with pytest.raises(ShapeError, match="sizes"):
        pack_masks([{"size": [1, 2], "counts": [2]}, {"size": [2, 1], "counts": [2]}])
    with pytest.raises(DataError, match="RLE counts cover 3 pixels"):
        pack_masks([{"size": [1, 2], "counts": [1, 2]}])
