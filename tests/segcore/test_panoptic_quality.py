"""Panoptic quality: worked by hand, against a plain twin of the formula, under weights."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.errors import DataError, OptionError, ShapeError
from segcore.metrics import PanopticQuality, PanopticRecord, match_panoptic, weighted_pq

Picture = dict[str, Any]
THINGS = (False, True, True, False)  # sky, cell, dog, grass
SKY, CELL, DOG, GRASS = range(4)
seeds = st.integers(0, 2**32 - 1)


def picture(rows: list[str], **segments: int | tuple[int, int]) -> Picture:
    """A map of characters, '.' void; a segment is a category or (category, iscrowd)."""
    numbers = {name: 7 * i + 3 for i, name in enumerate(segments)} | {".": 0}
    ids = np.array([[numbers[pixel] for pixel in row] for row in rows], dtype=np.int32)
    pairs = {
        numbers[name]: value if isinstance(value, tuple) else (value, 0)
        for name, value in segments.items()
    }
    return {"ids": ids, "segments": pairs}


def quality(pred: Picture, target: Picture) -> dict[str, Any]:
    metric = PanopticQuality(THINGS)
    metric.update([pred], [target])
    return metric.compute()


def test_perfect_and_empty() -> None:
    target = picture(["aaab", "aabb"], a=SKY, b=CELL)
    found = quality(target, target)
    assert (found["pq"], found["sq"], found["rq"]) == (1, 1, 1)
    assert found["pq_per_class"][:2] == [1, 1]
    assert all(math.isnan(value) for value in found["pq_per_class"][2:])
    nothing = picture(["...."])
    assert quality(nothing, picture(["aaaa"], a=SKY))["pq"] == 0
    assert math.isnan(quality(nothing, nothing)["pq"])


def test_worked_example() -> None:
    """sky 5/6; one cell 3/4, one missed, one false; a dog taken for a cell."""
    target = picture(["aaaaaabb", "bbcccddd"], a=SKY, b=CELL, c=CELL, d=DOG)
    pred = picture(["aaaaaebb", "bfffffgg"], a=SKY, b=CELL, e=GRASS, f=CELL, g=CELL)
    # b: 3 of 4; f covers c (3) and 1 of b and 1 of d: 3 / 5; g lies on the dog
    found = quality(pred, target)
    cell = (3 / 4 + 3 / 5) / (2 + 1 / 2)
    assert found["pq_per_class"] == pytest.approx([5 / 6, cell, 0, 0])
    assert found["sq_per_class"] == pytest.approx([5 / 6, (3 / 4 + 3 / 5) / 2, 0, 0])
    assert found["rq_per_class"] == pytest.approx([1, 2 / 2.5, 0, 0])
    assert found["pq"] == pytest.approx((5 / 6 + cell) / 4)
    assert found["pq_things"] == pytest.approx(cell / 2)
    assert found["pq_stuff"] == pytest.approx(5 / 12)
    # Pixels of the class, whatever its segments: cells share 7 of 10, the dog none of its 3.
    assert found["iou_per_class"] == pytest.approx([5 / 6, 7 / 10, 0, 0])
    assert found["iou_stuff"] == pytest.approx(5 / 12)


def test_half_is_no_match() -> None:
    target, pred = picture(["aaaabb"], a=CELL, b=SKY), picture(["aabbbb"], a=CELL, b=SKY)
    assert quality(pred, target)["pq_per_class"][:2] == [0, 0]


def test_void_does_not_count_in_the_union_and_forgives_false_alarms() -> None:
    target = picture(["aaa.....", "......aa"], a=SKY)
    pred = picture(["aaaaaaab", "b.....aa"], a=SKY, b=CELL)
    found = quality(pred, target)
    assert found["pq"] == 1  # b lies on void
    spilled = picture(["bbaaaaab", "b.....aa"], a=SKY, b=CELL)  # half of b is not on void
    assert quality(spilled, target)["rq_per_class"][CELL] == 0
    assert math.isnan(found["pq_per_class"][CELL])


def test_crowd_is_neither_missed_nor_matched_and_forgives_its_own_category() -> None:
    target = picture(["cccccc", "aaaaaa"], a=SKY, c=(CELL, 1))
    inside = picture(["xxyyyy", "aaaaaa"], a=SKY, x=CELL, y=CELL)
    assert math.isnan(quality(inside, target)["pq_per_class"][CELL])
    same = picture(["xxxxxx", "aaaaaa"], a=SKY, x=CELL)
    assert math.isnan(quality(same, target)["pq_per_class"][CELL])
    other = picture(["xxxxxx", "aaaaaa"], a=SKY, x=DOG)
    assert quality(other, target)["pq_per_class"][DOG] == 0


def random_picture(rng: np.random.Generator, size: tuple[int, int], crowds: bool) -> Picture:
    """Blocks with jagged edges, some void; few segments, so that matches happen."""
    ids = np.zeros(size, dtype=np.int32)
    for number in range(1, rng.integers(2, 8)):
        y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
        ids[y : y + rng.integers(2, 8), x : x + rng.integers(2, 8)] = 11 * number
    present = [int(number) for number in np.unique(ids) if number]
    return {
        "ids": ids,
        "segments": {
            number: (int(rng.integers(len(THINGS))), int(crowds and rng.random() < 0.2))
            for number in present
        },
    }


def random_pair(rng: np.random.Generator) -> tuple[Picture, Picture]:
    """A target, and the target with a strip of another picture painted over it."""
    size = (int(rng.integers(4, 14)), int(rng.integers(4, 14)))
    target, other = random_picture(rng, size, True), random_picture(rng, size, False)
    ids = target["ids"].copy()
    edge = int(rng.integers(0, size[1]))
    ids[:, :edge] = other["ids"][:, :edge] * 100
    segments = {100 * number: pair for number, pair in other["segments"].items()}
    segments |= {number: (category, 0) for number, (category, _) in target["segments"].items()}
    present = set(np.unique(ids).tolist())
    pred = {"ids": ids, "segments": {n: pair for n, pair in segments.items() if n in present}}
    return pred, target


def plain_counts(pred: Picture, target: Picture) -> np.ndarray:
    """The twin: iou, tp, fp, fn [4, K] pair by pair from the paper's definition."""
    counts = np.zeros((4, len(THINGS)))
    matched_true, matched_pred = set(), set()
    void = target["ids"] == 0
    for t, (true_category, crowd) in target["segments"].items():
        for p, (category, _) in pred["segments"].items():
            truth, guess = target["ids"] == t, (pred["ids"] == p) & ~void
            iou = (truth & guess).sum() / (truth | guess).sum()
            if iou > 0.5 and category == true_category and not crowd:
                counts[0, category] += iou
                counts[1, category] += 1
                matched_true.add(t)
                matched_pred.add(p)
    for p, (category, _) in pred["segments"].items():
        crowds = [t for t, pair in target["segments"].items() if pair == (category, 1)]
        free = void | np.isin(target["ids"], crowds)
        if p not in matched_pred and free[pred["ids"] == p].mean() <= 0.5:
            counts[2, category] += 1
    for t, (category, crowd) in target["segments"].items():
        counts[3, category] += t not in matched_true and not crowd
    return counts


def plain_quality(counts: np.ndarray, chosen: np.ndarray) -> tuple[float, float, float]:
    """PQ, SQ, RQ averaged over the chosen classes that have segments."""
    rows = []
    for (iou, tp, fp, fn), taken in zip(counts.T, chosen, strict=True):
        if taken and tp + fp + fn:
            size = tp + fp / 2 + fn / 2
            rows.append((iou / size, iou / tp if tp else 0, tp / size))
    return tuple(np.mean(rows, axis=0)) if rows else (math.nan,) * 3


def plain_iou(scene: list[tuple[Picture, Picture]], copies: np.ndarray) -> np.ndarray:
    """The twin: IoU [K] of the classes' pixels, image by image from class maps."""
    both, either = np.zeros((2, len(THINGS)))
    for (pred, target), weight in zip(scene, copies, strict=True):
        maps = []
        for each in (pred, target):
            lookup = {0: -1} | {number: pair[0] for number, pair in each["segments"].items()}
            maps.append(np.vectorize(lookup.__getitem__)(each["ids"])[target["ids"] > 0])
        for k in range(len(THINGS)):
            both[k] += weight * ((maps[0] == k) & (maps[1] == k)).sum()
            either[k] += weight * ((maps[0] == k) | (maps[1] == k)).sum()
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_figures_under_weights_are_those_of_the_formula(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = [random_pair(rng) for _ in range(4)]
    weights = rng.integers(0, 4, (3, 4))
    found = weighted_pq([match_panoptic(*pair) for pair in scene], weights, THINGS)
    each = np.stack([plain_counts(*pair) for pair in scene])
    flags = np.array(THINGS)
    for row, copies in enumerate(weights):
        counts = np.tensordot(copies, each, 1)
        for part, chosen in (("", flags | True), ("_things", flags), ("_stuff", ~flags)):
            values = [found[name + part][row] for name in ("pq", "sq", "rq")]
            np.testing.assert_allclose(values, plain_quality(counts, chosen), atol=1e-12)
            iou = plain_iou(scene, copies)[chosen]
            mean = np.nanmean(iou) if np.isfinite(iou).any() else math.nan
            np.testing.assert_allclose(found["iou" + part][row], mean, atol=1e-12)


def test_workers_add_up_and_records_go_through_bytes() -> None:
    rng = np.random.default_rng(1)
    scene = [random_pair(rng) for _ in range(6)]
    parts = [PanopticQuality(THINGS) for _ in range(3)]
    for part, images in zip(parts, (scene, scene[:2], scene[2:]), strict=True):
        part.update(*zip(*images, strict=True))
    merged = PanopticQuality(THINGS)
    merged.merge([part.state() for part in parts[1:]])
    np.testing.assert_equal(merged.compute(), parts[0].compute())
    record = parts[0].records[0]
    np.testing.assert_equal(vars(PanopticRecord.from_bytes(record.to_bytes())), vars(record))


def test_errors_say_what_is_wrong() -> None:
    good = picture(["aab"], a=SKY, b=CELL)
    with pytest.raises(DataError, match=r"prediction hold 5.*its 1 pixels"):
        match_panoptic(good | {"ids": np.array([[3, 5, 10]])}, good)
    with pytest.raises(DataError, match="target has the segment 99, but none of its pixels"):
        match_panoptic(good, good | {"segments": good["segments"] | {99: (0, 0)}})
    with pytest.raises(DataError, match="ids start at 1"):
        match_panoptic(good, good | {"segments": good["segments"] | {0: (0, 0)}})
    with pytest.raises(ShapeError, match=r"predicted ids are \(1, 3\), true ids \(1, 4\)"):
        match_panoptic(good, picture(["aaab"], a=SKY, b=CELL))
    with pytest.raises(DataError, match=r"category 3, but there are 2 classes"):
        weighted_pq([match_panoptic(*[picture(["a"], a=GRASS)] * 2)], [[1]], THINGS[:2])
    with pytest.raises(OptionError, match="things is empty"):
        PanopticQuality(())
