"""Targets of instance and panoptic models, against plain loops."""

import numpy as np
import object_scenes as scenes
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segcore.data.codec import encode_mask
from segcore.data.instances import Target, stuff_labels, thing_labels
from segcore.data.objects import compact_ids, id_map, instance_of, instances_of_ranks, touching
from segcore.data.sample import Instance
from segcore.data.shard_format import Row
from segcore.errors import DataError
from segcore.inference import rle
from segcore.tasks.instance.targets import ObjectTargets
from segcore.tasks.panoptic.targets import PanopticTargets

THINGS = (False, True, False, True)


def draw(seed: int, count: int, size: tuple[int, int]) -> list[tuple[np.ndarray, Instance]]:
    """Ellipses that overlap; the category is 1 or 3, every fifth a crowd."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    drawn = []
    for number in range(count):
        y, x = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        a, b = rng.uniform(1, 9, 2)
        mask = ((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < 1
        instance = instance_of(mask, (1, 3)[number % 2], number % 5 == 4)
        if instance is not None:
            drawn.append((mask, instance))
    return drawn


def target_of(
    instances: list[Instance],
    size: tuple[int, int],
    mask: np.ndarray | None = None,
    ignore_index: int = 255,
) -> Target:
    """The target of a row with these objects; a panoptic one with a mask."""
    encoded = None if mask is None else encode_mask(mask)
    row = Row("a", b"", encoded, tuple(instances), None, *size, "")
    targets = ObjectTargets(THINGS)
    if mask is not None:
        targets = PanopticTargets(scenes.spec("panoptic", "unet", ignore_index=ignore_index))
    label = targets.label(row)
    found: Target = targets.target(targets.items(label, size), label, size)
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.lists(hnp.arrays(bool, (13, 11), elements=st.booleans()), min_size=1, max_size=5),
    st.integers(0, 4),
)
def test_many_run_lengths_are_decoded_at_once(masks: list[np.ndarray], empty: int) -> None:
    masks[empty % len(masks)] = np.zeros((13, 11), bool)
    owner, row, column = rle.decode_pixels([rle.encode(mask) for mask in masks], 13, 11)
    found = np.zeros((len(masks), 13, 11), int)
    np.add.at(found, (owner, row, column), 1)
    assert (found == np.stack(masks)).all()
    assert (np.diff(owner) >= 0).all()


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(bool, (9, 7)), st.integers(0, 3), st.integers(0, 3))
def test_a_window_is_encoded_as_the_whole(window: np.ndarray, top: int, left: int) -> None:
    for size in ((9 + top, 7 + left), (12, 10)):
        whole = np.zeros(size, bool)
        whole[top : top + 9, left : left + 7] = window
        assert rle.encode_window(window, (top, left), size) == rle.encode(whole)


def test_one_damaged_mask_among_others_is_told() -> None:
    good = rle.encode(np.eye(5, dtype=bool))
    for bad, why in ((rle.encode(np.eye(6, dtype=bool)), "5x5 has 25"), ("", "have none")):
        with pytest.raises(DataError, match=why):
            rle.decode_pixels([good, bad, good], 5, 5)
    with pytest.raises(DataError, match="within a number"):
        rle.decode_pixels([good[:-1] + "P", good], 5, 5)


def test_target_is_that_of_plain_loops() -> None:
    size = (50, 40)
    drawn = draw(0, 40, size)
    stuff = Instance(0, (0.0, 0.0, 40.0, 50.0), 2000.0, rle.encode(np.ones(size, bool)))
    nothing = Instance(1, (0.0, 0.0, 0.0, 0.0), 0.0, rle.encode(np.zeros(size, bool)))
    instances = [drawn[0][1], nothing, stuff, *(instance for _, instance in drawn[1:]), nothing]
    target = target_of(instances, size)
    assert len(drawn) > 30
    assert (target["masks"].numpy() == np.stack([mask for mask, _ in drawn])).all()
    for place, (mask, instance) in enumerate(drawn):
        x, y, width, height = instance.bbox
        assert target["boxes"][place].tolist() == [x, y, x + width, y + height]
        assert target["area"][place] == mask.sum()
        assert target["labels"][place] == {1: 1, 3: 2}[instance.category]
        assert bool(target["iscrowd"][place]) == instance.iscrowd
    types = {key: value.dtype for key, value in target.items()}
    assert types == {
        "boxes": torch.float32, "labels": torch.int64, "masks": torch.uint8,
        "iscrowd": torch.uint8, "area": torch.float32,
    }  # fmt: skip


def test_no_object_is_an_empty_target() -> None:
    target = target_of([], (6, 7))
    shapes = {key: tuple(value.shape) for key, value in target.items()}
    assert shapes == {
        "boxes": (0, 4), "labels": (0,), "masks": (0, 6, 7), "iscrowd": (0,), "area": (0,),
    }  # fmt: skip
    assert id_map([], (2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_small_objects_lie_on_large_ones_and_crowds_below() -> None:
    size = (50, 40)
    drawn = draw(2, 30, size)
    expected = np.zeros(size, int)
    order = sorted(range(len(drawn)), key=lambda i: (not drawn[i][1].iscrowd, -drawn[i][1].area))
    for place in order:
        expected[drawn[place][0]] = place + 1
    assert (id_map([i for _, i in drawn], size) == expected).all()


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.int64, (8, 9), elements=st.sampled_from([0, 3, 70000, 5])))
def test_id_maps_become_instances_and_back(ids: np.ndarray) -> None:
    found, ranks = compact_ids(ids)
    assert found.tolist() == sorted(set(ids.ravel().tolist()) - {0})
    instances = instances_of_ranks(ranks, [1] * len(found))
    for number, instance in zip(found, instances, strict=True):
        assert (rle.decode(instance.counts, 8, 9) == (ids == number)).all()
        assert instance.area == (ids == number).sum()
    assert ((id_map(instances, (8, 9)) > 0) == (ids > 0)).all()


def test_touching_sees_corners_and_nothing_else() -> None:
    ids = np.zeros((6, 6), np.int32)
    ids[1, 1], ids[3, 3] = 1, 2
    assert not touching(ids)
    ids[2, 2] = 1
    assert touching(ids)
    assert touching(ids[:, ::-1])
    assert not touching(np.where(ids > 0, 1, 0))


def test_panoptic_target_ranks_stuff_and_joins_things() -> None:
    assert thing_labels(THINGS) == {1: 1, 3: 2}
    assert stuff_labels(THINGS) == {0: 0, 1: 2, 2: 1, 3: 2}
    mask = np.array([[0, 1, 2, 3, 255]], np.uint8)
    car = instance_of(mask == 3, 3)
    assert car is not None
    target = target_of([car], (1, 5), mask)
    assert target["semantic"].tolist() == [[0, 2, 1, 2, 255]]
    assert target["semantic"].dtype == torch.int64
    assert (target["labels"].tolist(), target["boxes"].tolist()) == ([2], [[3, 0, 4, 1]])
    assert target_of([], (1, 5), mask, ignore_index=2)["semantic"].tolist() == [[0, 2, 255, 2, 255]]
