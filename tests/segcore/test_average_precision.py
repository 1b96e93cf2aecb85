"""Average precision and recall: against the evaluators of COCO, under weights, by hand."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from coco_scenes import Image, Scene, random_scene, reference
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.errors import DataError, OptionError, ShapeError
from segcore.inference import rle
from segcore.metrics import (
    AverageRecall,
    InstanceRecord,
    MeanAveragePrecision,
    match_image,
    precision_curves,
    precision_table,
    weighted_ap,
    weighted_ar,
)

seeds = st.integers(0, 2**32 - 1)
iou_types = st.sampled_from(["segm", "bbox"])


def streamed(scene: Scene, metric: Any) -> Any:
    for pred, target in scene:
        metric.update([pred], [target])
    return metric


@given(seeds, iou_types)
@settings(max_examples=60, deadline=None)
def test_twelve_numbers_are_those_of_the_evaluator(seed: int, iou_type: str) -> None:
    scene = random_scene(seed)
    stats = streamed(scene, MeanAveragePrecision(iou_type)).compute()["stats"]
    np.testing.assert_allclose(stats, reference(scene, iou_type), atol=1e-9)


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_twelve_numbers_are_those_of_pycocotools(iou_type: str) -> None:
    pytest.importorskip("pycocotools")
    for seed in range(15):
        scene = random_scene(seed)
        if not sum(len(pred["labels"]) for pred, _ in scene):
            continue  # which loadRes of pycocotools cannot take
        stats = streamed(scene, MeanAveragePrecision(iou_type)).compute()["stats"]
        np.testing.assert_allclose(stats, reference(scene, iou_type, "pycocotools"), atol=1e-9)


def test_more_detections_than_count() -> None:
    scene = random_scene(0, images=2, most=300, classes=1)
    assert max(len(pred["labels"]) for pred, _ in scene) > 150
    stats = streamed(scene, MeanAveragePrecision("bbox")).compute()["stats"]
    np.testing.assert_allclose(stats, reference(scene, "bbox"), atol=1e-9)
    assert len(set(stats[6:9])) == 3  # the limits of 1, 10 and 100 tell apart


@given(seeds, iou_types)
@settings(max_examples=20, deadline=None)
def test_average_recall_is_the_evaluator_without_categories(seed: int, iou_type: str) -> None:
    scene = random_scene(seed, most=30, classes=1)
    expected = reference(scene, iou_type, caps=(10, 100, 1000))[6:]
    found = streamed(scene, AverageRecall(iou_type)).compute()
    assert list(found) == ["ar_10", "ar_100", "ar_1000", "ar_small", "ar_medium", "ar_large"]
    values = np.nan_to_num(list(found.values()), nan=-1)
    np.testing.assert_allclose(values, expected, atol=1e-9)


@given(seeds, iou_types)
@settings(max_examples=25, deadline=None)
def test_weights_are_copies_of_images(seed: int, iou_type: str) -> None:
    scene = random_scene(seed, images=5, tied=False)
    weights = np.random.default_rng(seed).integers(0, 4, (3, len(scene)))
    weights[0] = 1
    records = streamed(scene, MeanAveragePrecision(iou_type)).records
    figures = weighted_ap(records, weights)
    for row, copies in enumerate(weights):
        repeated = [image for image, n in zip(scene, copies, strict=True) for _ in range(n)]
        found = np.nan_to_num([values[row] for values in figures.values()], nan=-1)
        np.testing.assert_allclose(found, reference(repeated, iou_type), atol=1e-9)


def test_labels_of_proposals_do_not_matter() -> None:
    for pred, target in random_scene(6, images=6):
        one = [
            objects | {"labels": torch.ones_like(objects["labels"])} for objects in (pred, target)
        ]
        records = [match_image(*pair, class_agnostic=True) for pair in ((pred, target), one)]
        assert records[0].to_bytes() == records[1].to_bytes()


def test_recall_under_weights_is_copies_of_images() -> None:
    scene = random_scene(5, images=6, most=25, classes=1)
    records = streamed(scene, AverageRecall()).records
    weights = np.random.default_rng(0).integers(0, 4, (4, 6))
    figures = weighted_ar(records, weights)
    for row, copies in enumerate(weights):
        repeated = [image for image, n in zip(scene, copies, strict=True) for _ in range(n)]
        expected = reference(repeated, "segm", caps=(10, 100, 1000))[6:]
        found = np.nan_to_num([values[row] for values in figures.values()], nan=-1)
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_chunks_of_weights_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    records = streamed(random_scene(1, images=6), MeanAveragePrecision("bbox")).records
    weights = np.random.default_rng(0).poisson(1.0, (40, 6))
    whole = weighted_ap(records, weights)
    monkeypatch.setattr("segcore.metrics.average_precision._CHUNK", 100)
    for name, values in weighted_ap(records, weights).items():
        np.testing.assert_array_equal(values, whole[name])


def test_scaling_all_weights_changes_nothing() -> None:
    records = streamed(random_scene(2, images=6), MeanAveragePrecision("bbox")).records
    weights = np.random.default_rng(0).random((5, 6))
    tenfold = weighted_ap(records, 8 * weights)
    for name, values in weighted_ap(records, weights).items():
        np.testing.assert_allclose(values, tenfold[name], atol=1e-12)


def boxes_image(boxes: list[list[float]], **fields: Any) -> Image:
    table = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    image: Image = {"boxes": table, "labels": torch.ones(len(table), dtype=torch.int64)}
    return image | {name: torch.tensor(value) for name, value in fields.items()}


def test_average_precision_by_hand() -> None:
    """Two objects; hit, false alarm, hit: precision 1 up to recall 0.5, then 2/3."""
    target = boxes_image([[0, 0, 10, 10], [20, 0, 30, 10]])
    pred = boxes_image([[0, 0, 10, 10], [50, 50, 60, 60], [20, 0, 30, 10]], scores=[0.9, 0.8, 0.7])
    metric = MeanAveragePrecision("bbox")
    metric.update([pred], [target])
    found = metric.compute()
    expected = (51 * 1 + 50 * 2 / 3) / 101
    assert found["ap"] == pytest.approx(expected)
    assert found["ap_small"] == pytest.approx(expected)
    assert np.isnan(found["ap_large"])
    assert found["stats"][5] == -1
    assert (found["ar_1"], found["ar_10"]) == (0.5, 1.0)
    assert found["ap_per_class"] == pytest.approx({1: expected})
    assert found["ap50_per_class"] == pytest.approx({1: expected})


def test_crowd_is_a_region_to_ignore() -> None:
    target = boxes_image([[0, 0, 10, 10], [40, 40, 80, 80]], iscrowd=[0, 1])
    inside = [[40, 40, 50, 50], [60, 60, 70, 70]]  # both within the crowd
    pred = boxes_image([*inside, [0, 0, 10, 10]], scores=[0.9, 0.8, 0.7])
    metric = MeanAveragePrecision("bbox")
    metric.update([pred], [target])
    assert metric.compute()["ap"] == pytest.approx(1.0)
    counted = MeanAveragePrecision("bbox")
    counted.update([pred], [target | {"iscrowd": torch.zeros(2)}])
    assert counted.compute()["ap"] < 0.5


def test_of_equal_overlaps_the_later_object_is_taken() -> None:
    """As COCOeval does: the first detection overlaps both by half, the second is one of them."""
    left, right = [0, 0, 10, 10], [10, 0, 20, 10]
    pred = boxes_image([[0, 0, 20, 10], left], scores=[0.9, 0.8])
    recalls = []
    for truths in ([left, right], [right, left]):
        record = match_image(pred, boxes_image(truths), iou_type="bbox")
        recalls.append(precision_table([record], [[1]]).recall[0, 0, 0, 0])
    assert recalls == [1.0, 0.5]


def test_nothing_at_all() -> None:
    metric = MeanAveragePrecision("bbox")
    assert metric.compute()["stats"].tolist() == [-1.0] * 12
    metric.update([boxes_image([], scores=[])], [boxes_image([])])
    found = metric.compute()
    assert found["stats"].tolist() == [-1.0] * 12
    assert np.isnan(found["ap"])
    assert found["ap_per_class"] == {}
    metric.update([boxes_image([], scores=[])], [boxes_image([[0, 0, 9, 9]])])
    assert metric.compute()["ap"] == 0.0
    assert all(np.isnan(v).all() for v in weighted_ap(metric.records, [[0, 0]]).values())


def test_curve_averages_to_the_average_precision() -> None:
    records = streamed(random_scene(3, images=8, classes=2), MeanAveragePrecision("segm")).records
    curves = precision_curves(records)
    table = precision_table(records, np.ones((1, 8)))
    assert list(curves) == table.labels.tolist() == [1, 2]
    for row, curve in enumerate(curves.values()):
        assert curve.shape == (10, 101)
        assert (np.diff(curve, axis=1) <= 0).all()
        np.testing.assert_allclose(curve.mean(1), table.ap[0, row, 0], atol=1e-12)


def mask_forms(masks: torch.Tensor) -> Iterator[Any]:
    """The same masks in every form that is taken."""
    yield masks
    yield masks.bool()
    yield masks.numpy()
    yield masks[:, None].float() * 0.6 + 0.2
    yield [{"size": list(m.shape), "counts": rle.encode(m)} for m in masks.numpy().astype(bool)]
    runs = []
    for mask in masks.numpy():
        flat = np.concatenate([[0], mask.ravel(order="F"), [-1]])
        ends = np.flatnonzero(np.diff(flat) != 0)
        runs.append({"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()})
    yield runs


def test_every_form_of_masks_gives_the_same_record() -> None:
    (pred, target), *_ = random_scene(10, images=1)
    assert len(pred["masks"]) > 2
    first, *others = (
        match_image(pred | {"masks": form}, target).to_bytes() for form in mask_forms(pred["masks"])
    )
    assert len(others) == 5
    assert all(other == first for other in others)
    forms = mask_forms(target["masks"])
    assert {match_image(pred, target | {"masks": form}).to_bytes() for form in forms} == {first}


def test_record_goes_through_bytes() -> None:
    for pred, target in random_scene(12, images=6):
        record = match_image(pred, target)
        again = InstanceRecord.from_bytes(record.to_bytes())
        for name, value in vars(record).items():
            np.testing.assert_array_equal(vars(again)[name], value)
            assert vars(again)[name].dtype == value.dtype
    with pytest.raises(DataError, match="no InstanceRecord"):
        InstanceRecord.from_bytes(b"nonsense")


@pytest.mark.parametrize("kind", [MeanAveragePrecision, AverageRecall])
def test_workers_add_up(kind: Any) -> None:
    scene = random_scene(4, images=5)
    whole = streamed(scene, kind())
    parts = [streamed(scene[:2], kind()), streamed(scene[2:], kind())]
    merged = kind()
    merged.merge([part.state() for part in parts])
    np.testing.assert_equal(merged.compute(), whole.compute())
    merged.reset()
    assert merged.records == []


def test_bfloat16_and_lists_are_taken() -> None:
    target = boxes_image([[0, 0, 8, 8]])
    pred = boxes_image([[0, 0, 8, 8]], scores=[0.5])
    record = match_image(pred, target, iou_type="bbox")
    narrow = {name: value.bfloat16() for name, value in pred.items()}
    listed = {name: value.tolist() for name, value in pred.items()}
    for same in (narrow, listed):
        assert match_image(same, target, iou_type="bbox").to_bytes() == record.to_bytes()


def test_errors_say_what_is_wrong() -> None:
    target = boxes_image([[0, 0, 10, 10]])
    pred = boxes_image([[0, 0, 10, 10]], scores=[0.5])
    with pytest.raises(OptionError, match="iou_type is 'mask'"):
        MeanAveragePrecision("mask")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="has no 'masks'"):
        match_image(pred, target)
    with pytest.raises(OptionError, match="has no 'scores'"):
        match_image(target, target, iou_type="bbox")
    with pytest.raises(DataError, match="score of a detection is nan"):
        match_image(pred | {"scores": torch.tensor([torch.nan])}, target, iou_type="bbox")
    two = {"labels": torch.ones(2), "scores": torch.ones(2)}
    with pytest.raises(ShapeError, match="1 boxes for 2 labels"):
        match_image(pred | two, target, iou_type="bbox")
    with pytest.raises(ShapeError, match="2 predictions for 1 targets"):
        MeanAveragePrecision("bbox").update([pred, pred], [target])
    records = [match_image(pred, target, iou_type="bbox")]
    with pytest.raises(ShapeError, match=r"weights are \(1, 2\) for 1 records"):
        weighted_ap(records, [[1, 1]])
    with pytest.raises(OptionError, match="a weight is -1"):
        weighted_ap(records, [[-1]])
