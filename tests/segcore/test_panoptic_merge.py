"""Merging things and stuff, beside the paper's rule written pixel by pixel."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segcore.errors import OptionError, ShapeError
from segcore.inference.panoptic import merge, stuff_map

THINGS = (False, True, False, True)


def instances(masks: Tensor, scores: list[float], labels: list[int]) -> dict[str, Tensor]:
    return {"masks": masks, "scores": torch.tensor(scores), "labels": torch.tensor(labels)}


def rectangle(y1: int, x1: int, y2: int, x2: int) -> Tensor:
    mask = torch.zeros(1, 8, 10)
    mask[:, y1:y2, x1:x2] = 0.9
    return mask


def test_things_win_over_stuff_and_the_surer_thing_over_the_other() -> None:
    semantic = torch.zeros(8, 10, dtype=torch.int64)
    semantic[6:] = 2
    semantic[0] = 3  # a thing class of the semantic result: void
    masks = torch.stack([rectangle(1, 0, 4, 4), rectangle(1, 2, 4, 8), rectangle(1, 0, 4, 3)])
    found = instances(masks, [0.7, 0.9, 0.6], [1, 2, 1])
    ids, segments = merge(semantic, found, things=THINGS, stuff_area=20)
    assert ids.dtype == np.int32
    # The third lies within the first: two thirds taken, dropped. Stuff 2 has 20 px, stuff 0 more.
    assert [(s["category"], s["isthing"], s["area"]) for s in segments] == [
        (3, True, 18), (1, True, 6), (0, False, 26), (2, False, 20),
    ]  # fmt: skip
    assert segments[0]["score"] == pytest.approx(0.9)
    assert segments[2]["score"] is None
    assert (ids[0] == 0).all()
    assert ids[1].tolist() == [2, 2, 1, 1, 1, 1, 1, 1, 3, 3]


def test_limits_drop_weak_things_and_small_stuff() -> None:
    semantic = torch.zeros(8, 10, dtype=torch.int64)
    found = instances(rectangle(0, 0, 2, 2)[None], [0.49], [1])
    ids, segments = merge(semantic, found, things=THINGS, stuff_area=81)
    assert not ids.any()
    assert segments == []
    _, segments = merge(semantic, found, things=THINGS, stuff_area=80, score_threshold=0.4)
    assert [s["category"] for s in segments] == [1]  # 76 px of stuff are left


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 6))
def test_merge_is_the_rule_pixel_by_pixel(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    semantic = rng.integers(0, 5, (6, 7))
    masks = rng.random((count, 6, 7)) > 0.6
    scores, labels = rng.random(count).round(3), rng.integers(1, 3, count)
    expected: dict[tuple[int, int], int] = {}
    categories: list[int] = []
    for k in np.argsort(-scores, kind="stable"):
        own = [(int(y), int(x)) for y, x in np.argwhere(masks[k])]
        free = [p for p in own if p not in expected]
        if scores[k] < 0.3 or not free or (len(own) - len(free)) / len(own) > 0.4:
            continue
        categories.append([1, 3][labels[k] - 1])
        expected |= dict.fromkeys(free, len(categories))
    for stuff in (0, 2):
        rest = [(int(y), int(x)) for y, x in np.argwhere(semantic == stuff)]
        rest = [p for p in rest if p not in expected]
        if len(rest) >= 4:
            categories.append(stuff)
            expected |= dict.fromkeys(rest, len(categories))
    found = {
        "masks": torch.from_numpy(masks),
        "scores": torch.from_numpy(scores).float(),
        "labels": torch.from_numpy(labels),
    }
    ids, segments = merge(
        semantic, found, things=THINGS, score_threshold=0.3, overlap_threshold=0.4, stuff_area=4
    )
    assert [s["category"] for s in segments] == categories
    assert {(y, x): int(ids[y, x]) for y, x in np.argwhere(ids)} == expected
    assert [s["area"] for s in segments] == [int((ids == s["id"]).sum()) for s in segments]


def test_stuff_map_names_the_datasets_classes() -> None:
    logits: Any = torch.eye(3).reshape(3, 1, 3)
    assert stuff_map(logits, THINGS).tolist() == [[0, 2, -1]]
    with pytest.raises(ShapeError, match="num_stuff=2"):
        stuff_map(logits[:2], THINGS)


def test_refuses_what_does_not_fit_together() -> None:
    found = instances(rectangle(0, 0, 2, 2)[None], [0.9], [3])
    with pytest.raises(OptionError, match="2 things"):
        merge(torch.zeros(8, 10), found, things=THINGS)
    with pytest.raises(ShapeError, match="at the image's size"):
        merge(torch.zeros(9, 10), found, things=THINGS)
