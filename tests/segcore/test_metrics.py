"""Metrics: by hand, against torchmetrics and brute force, merged, and without asking the device."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from segcore.errors import DataError, OptionError, ShapeError
from segcore.metrics import BoundaryScore, CalibrationError, ConfusionMatrix, scores


def maps(
    num_classes: int, seed: int, *, ignore_index: int = 255, absent: int = 0, size: int = 9
) -> tuple[Tensor, Tensor]:
    """A prediction and a target [2, size, size + 2] without the last `absent` classes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, size, size + 2)
    prediction = torch.randint(0, max(num_classes - absent, 1), shape, generator=generator)
    target = torch.randint(0, max(num_classes - absent, 1), shape, generator=generator)
    target[torch.rand(shape, generator=generator) < 0.2] = ignore_index
    return prediction, target


def filled(num_classes: int, prediction: Tensor, target: Tensor, **options: Any) -> ConfusionMatrix:
    metric = ConfusionMatrix(num_classes, **options)
    metric.update(prediction, target)
    return metric


# Confusion matrix


def test_figures_by_hand() -> None:
    target = torch.tensor([[[0, 0, 0, 1], [1, 1, 2, 255]]])
    prediction = torch.tensor([[[0, 0, 1, 1], [1, 2, 2, 0]]])
    metric = filled(4, prediction, target)
    assert metric.matrix.tolist() == [[2, 1, 0, 0], [0, 2, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    iou = [2 / 3, 2 / 4, 1 / 2]
    assert metric.per_class()["iou"][:3] == pytest.approx(iou)
    assert metric.per_class()["precision"][:3] == pytest.approx([1, 2 / 3, 1 / 2])
    assert metric.per_class()["recall"][:3] == pytest.approx([2 / 3, 2 / 3, 1])
    assert metric.per_class()["dice"][:3] == pytest.approx([4 / 5, 4 / 6, 2 / 3])
    assert metric.per_class()["f1"][:3] == metric.per_class()["dice"][:3]
    assert metric.compute() == pytest.approx(
        {
            "miou": sum(iou) / 3,
            "pixel_accuracy": 5 / 7,
            "mean_accuracy": (2 / 3 + 2 / 3 + 1) / 3,
            "fw_iou": (3 * iou[0] + 3 * iou[1] + iou[2]) / 7,
        }
    )


def test_absent_class_has_no_figures() -> None:
    metric = filled(3, torch.tensor([[[0, 0]]]), torch.tensor([[[0, 0]]]))
    for values in metric.per_class().values():
        assert values[0] == 1
        assert math.isnan(values[1])
        assert math.isnan(values[2])
    assert metric.compute()["miou"] == 1


def test_class_only_predicted_counts_as_zero_iou() -> None:
    metric = filled(3, torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]))
    assert metric.per_class()["iou"][:2] == [0.5, 0.0]
    assert metric.compute()["miou"] == 0.25
    assert metric.compute()["mean_accuracy"] == 0.5
    assert math.isnan(metric.per_class()["recall"][1])


def test_nothing_labelled_gives_nan() -> None:
    metric = ConfusionMatrix(3)
    assert all(math.isnan(value) for value in metric.compute().values())
    metric.update(torch.zeros(1, 2, 2, dtype=torch.long), torch.full((1, 2, 2), 255))
    metric.update(torch.zeros(0, 2, 2, dtype=torch.long), torch.zeros(0, 2, 2, dtype=torch.long))
    assert all(math.isnan(value) for value in metric.compute().values())


@settings(max_examples=40, deadline=None)
@given(
    num_classes=st.integers(2, 6),
    seed=st.integers(0, 10**6),
    ignore_index=st.sampled_from([255, 0, -100, -1, 6, 70000, -5000]),
    absent=st.integers(0, 3),
    dtype=st.sampled_from([torch.int64, torch.int32]),
)
def test_equals_torchmetrics(
    num_classes: int, seed: int, ignore_index: int, absent: int, dtype: torch.dtype
) -> None:
    peer = pytest.importorskip("torchmetrics.functional.classification")
    prediction, target = maps(num_classes, seed, ignore_index=ignore_index, absent=absent)
    metric = filled(num_classes, prediction, target.to(dtype), ignore_index=ignore_index)
    common = {"num_classes": num_classes, "ignore_index": ignore_index}
    matrix = peer.multiclass_confusion_matrix(prediction, target, **common)
    assert torch.equal(metric.matrix, matrix)
    macro = peer.multiclass_jaccard_index(prediction, target, **common, average="macro")
    ours = metric.compute()
    assert np.nan_to_num(ours["miou"]) == pytest.approx(np.nan_to_num(float(macro)), abs=1e-6)
    accuracy = peer.multiclass_accuracy(prediction, target, **common, average="micro")
    assert np.nan_to_num(ours["pixel_accuracy"]) == pytest.approx(float(accuracy), abs=1e-6)
    for key, name in (("iou", "jaccard_index"), ("f1", "f1_score"), ("recall", "recall")):
        theirs = getattr(peer, f"multiclass_{name}")(prediction, target, **common, average=None)
        values = np.nan_to_num(metric.per_class()[key])
        scored = [c for c in range(num_classes) if c != ignore_index]
        np.testing.assert_allclose(values[scored], np.nan_to_num(theirs)[scored], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_any_integer_type_counts_alike(dtype: torch.dtype) -> None:
    prediction, target = maps(5, 0)
    kind = torch.int16 if dtype == torch.uint8 else dtype
    metric = filled(5, prediction.to(kind), target.to(dtype))
    assert torch.equal(metric.matrix, filled(5, prediction, target).matrix)


def test_large_batches_and_many_classes_are_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randint(0, 300, (2, 3, 300, 301), generator=generator)
    expected = np.bincount((300 * target + prediction).flatten(), minlength=90000)
    metric = filled(300, prediction, target, ignore_index=-1)
    assert torch.equal(metric.matrix.flatten(), torch.tensor(expected))


def test_logits_are_taken_by_their_argmax() -> None:
    logits = torch.randn(2, 4, 5, 6)
    _, target = maps(4, 1, size=5)
    target = target[:, :, :6]
    expected = filled(4, logits.argmax(1), target).matrix
    assert torch.equal(filled(4, logits, target).matrix, expected)


def test_one_class_counts_background_and_foreground() -> None:
    metric = filled(1, torch.tensor([[[[-1.0, 2.0, 3.0]]]]), torch.tensor([[[0, 0, 1]]]))
    assert metric.matrix.tolist() == [[1, 1], [0, 1]]


def test_merged_states_equal_one_pass() -> None:
    whole, parts = ConfusionMatrix(4), [ConfusionMatrix(4) for _ in range(3)]
    for seed, part in enumerate(parts):
        prediction, target = maps(4, seed)
        whole.update(prediction, target)
        part.update(prediction, target)
    merged = parts[0]
    merged.merge([part.state() for part in parts])
    assert torch.equal(merged.matrix, whole.matrix)
    with pytest.raises(ShapeError, match="same num_classes"):
        merged.merge([ConfusionMatrix(5).state()])
    whole.reset()
    assert whole.matrix.sum() == 0


@pytest.mark.parametrize(
    ("prediction", "target", "ignore_index", "message"),
    [
        (0, 12, 255, "target holds the id 12 at 1 pixels, but there are 4 classes"),
        (0, -1, 255, "target holds an id below 0"),
        (0, -7, -100, "target holds the id -7"),
        (0, 10**6, 255, "target holds an id above 255"),
        (0, 255, 11, "target holds the id 255"),
        (4, 0, 255, "prediction holds an id above 3"),
        (-1, 0, 255, "prediction holds an id below 0"),
    ],
)
@pytest.mark.parametrize("accelerator", [False, True])
def test_wrong_ids_are_named(
    prediction: int, target: int, ignore_index: int, message: str, accelerator: bool
) -> None:
    metric = ConfusionMatrix(4, ignore_index)
    pair = torch.tensor([[[0, prediction]]]), torch.tensor([[[0, target]]])
    if accelerator:  # the counting that an accelerator does, checked when figures are asked for
        bins = metric._bins(pair[0].flatten(), pair[1].flatten())
        with pytest.raises(DataError, match=message):
            metric._check(metric._count_replicated(bins))
        return
    with pytest.raises(DataError, match=message):
        metric.update(*pair)
    assert metric.matrix.sum() == 0


@pytest.mark.parametrize("ignore_index", [255, 2, -100, 9999])
def test_accelerators_count_the_same(ignore_index: int) -> None:
    prediction, target = maps(5, 3, ignore_index=ignore_index)
    metric, other = (
        filled(5, prediction, target, ignore_index=ignore_index),
        ConfusionMatrix(5, ignore_index),
    )
    other._table += other._count_replicated(other._bins(prediction.flatten(), target.flatten()))
    assert torch.equal(other.matrix, metric.matrix)


@pytest.mark.parametrize("kind", ["confusion", "boundary", "calibration"])
def test_update_on_an_accelerator_never_asks_it(kind: str) -> None:
    """A fake CUDA tensor has no values: any .item() in update would raise."""
    with FakeTensorMode():
        logits = torch.empty(2, 4, 12, 16, device="cuda")
        target = torch.empty(2, 12, 16, device="cuda", dtype=torch.int64)
        if kind == "confusion":
            ConfusionMatrix(4, device="cuda").update(logits, target)
        elif kind == "boundary":
            BoundaryScore(4, device="cuda").update(logits, target)
        else:
            CalibrationError(device="cuda").update(logits, target)


def test_wrong_shapes_are_refused() -> None:
    metric = ConfusionMatrix(3)
    ids = torch.zeros(1, 4, 4, dtype=torch.long)
    with pytest.raises(ShapeError, match="class ids of the target's shape"):
        metric.update(ids, ids[:, :3])
    with pytest.raises(ShapeError, match="as integers"):
        metric.update(ids.float(), ids)
    with pytest.raises(OptionError, match="num_classes is 0"):
        ConfusionMatrix(0)


# Scores


def test_scores_of_a_stack_are_those_of_each() -> None:
    stack = torch.stack([filled(4, *maps(4, seed, absent=seed % 2)).matrix for seed in range(5)])
    together = scores(stack)
    for index, matrix in enumerate(stack):
        alone = scores(matrix.numpy())
        for name in ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou", "iou", "precision"):
            np.testing.assert_array_equal(getattr(together, name)[index], getattr(alone, name))
    assert together.iou.shape == (5, 4)
    assert together.miou.shape == (5,)


def test_scores_refuse_what_is_not_square() -> None:
    with pytest.raises(ShapeError, match=r"\[..., K, K\]"):
        scores(np.zeros((2, 3)))


def test_dice_and_iou_agree() -> None:
    result = filled(5, *maps(5, 2)).scores()
    np.testing.assert_allclose(result.iou, result.dice / (2 - result.dice))


# Boundaries


def edges(region: np.ndarray, void: np.ndarray) -> np.ndarray:
    """Pixels of a region with a labelled 4-neighbour outside of it."""
    points = []
    for y, x in np.argwhere(region):
        for b, a in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            inside = 0 <= b < region.shape[0] and 0 <= a < region.shape[1]
            if inside and not region[b, a] and not void[b, a]:
                points.append((y, x))
                break
    return np.array(points, dtype=float).reshape(-1, 2)


def share_near(points: np.ndarray, others: np.ndarray, radius: float) -> float:
    if len(points) == 0 or len(others) == 0:
        return 0.0
    distances = np.sqrt(((points[:, None] - others[None]) ** 2).sum(-1)).min(1)
    return float((distances <= radius).mean())


@pytest.mark.parametrize("seed", range(6))
def test_boundary_f1_equals_brute_force(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 3, (2, 2, 4, 5), generator=generator)
    guess, true = coarse.repeat_interleave(5, 2).repeat_interleave(5, 3)
    true[:, 3:6, 4:9] = 255
    metric = BoundaryScore(3, tolerance=0.08)
    metric.update(guess, true)
    radius = 0.08 * math.hypot(20, 25)
    images = []
    for g, t in zip(guess.numpy(), true.numpy(), strict=True):
        void, values = t == 255, []
        for c in range(3):
            a, b = edges((g == c) & ~void, void), edges(t == c, void)
            if (t == c).any() and len(a) + len(b):
                p, r = share_near(a, b, radius), share_near(b, a, radius)
                values.append(2 * p * r / (p + r) if p + r else 0.0)
        images.append(np.mean(values))
    assert metric.compute()["boundary_f1"] == pytest.approx(np.mean(images))


def test_boundary_iou_by_hand() -> None:
    target = torch.zeros(1, 9, 9, dtype=torch.long)
    target[0, 2:7, 2:7] = 1
    shifted = target.roll(1, 2)
    metric = BoundaryScore(2, band=1 / math.hypot(9, 9))
    metric.update(shifted, target)
    # Rings of 16 pixels one apart share 8 of their pixels: the top and bottom rows' overlap.
    assert metric.per_class()["boundary_iou"][1] == pytest.approx(8 / 24)


def test_boundary_scores_of_the_truth_are_one_and_merge() -> None:
    _, target = maps(3, 0)
    whole, parts = BoundaryScore(4), [BoundaryScore(4), BoundaryScore(4)]
    whole.update(target, target)
    for image, part in zip(target, parts, strict=True):
        part.update(image[None], image[None])
    assert whole.compute() == pytest.approx({"boundary_f1": 1.0, "boundary_iou": 1.0})
    assert math.isnan(whole.per_class()["boundary_f1"][3])
    parts[0].merge([part.state() for part in parts])
    assert parts[0].compute() == pytest.approx(whole.compute())
    assert math.isnan(BoundaryScore(3).compute()["boundary_f1"])


# Calibration


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_torchmetrics(bins: int) -> None:
    peer = pytest.importorskip("torchmetrics.functional.classification")
    logits = 2 * torch.randn(3, 5, 8, 9, generator=torch.Generator().manual_seed(0))
    target = torch.randint(0, 5, (3, 8, 9), generator=torch.Generator().manual_seed(1))
    target[:, :3] = 255
    metric, parts = CalibrationError(bins=bins), [CalibrationError(bins=bins) for _ in range(3)]
    metric.update(logits, target)
    theirs = peer.multiclass_calibration_error(
        logits.softmax(1), target, num_classes=5, n_bins=bins, ignore_index=255
    )
    assert metric.compute()["calibration_error"] == pytest.approx(float(theirs), abs=1e-6)
    for index, part in enumerate(parts):
        part.update(logits[index : index + 1], target[index : index + 1])
    parts[0].merge([part.state() for part in parts])
    assert parts[0].compute()["calibration_error"] == pytest.approx(float(theirs), abs=1e-6)
    assert sum(metric.reliability()["share"]) == pytest.approx(1)


def test_calibration_of_nothing_is_nan() -> None:
    metric = CalibrationError()
    metric.update(torch.randn(1, 3, 2, 2), torch.full((1, 2, 2), 255))
    assert math.isnan(metric.compute()["calibration_error"])
