"""Losses by value: worked examples, the invariants of their papers, and their peers."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segcore.errors import ShapeError
from segcore.losses import (
    border_weight_map,
    create_loss,
    signed_distances,
)
from segcore.losses.cross_entropy import cross_entropy
from segcore.losses.dice import dice
from segcore.losses.dice_ce import dice_ce


def batch(
    num_classes: int,
    *,
    ignore_index: int = 255,
    size: tuple[int, ...] = (2, 5, 6),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Random logits and a target in which a fifth of the pixels is ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size[0], num_classes, *size[1:], generator=generator, dtype=dtype)
    target = torch.randint(0, max(num_classes, 2), size, generator=generator)
    target[torch.rand(size, generator=generator) < 0.2] = ignore_index
    return logits.requires_grad_(), target


def hard(target: Tensor, num_classes: int) -> Tensor:
    """Logits whose softmax is 0 or 1 in float32."""
    return F.one_hot(target, num_classes).movedim(-1, 1).float() * 200


# Cross-entropy


def test_uniform_logits_give_log_of_classes() -> None:
    _, target = batch(7)
    value = create_loss("cross_entropy", num_classes=7)(torch.zeros(2, 7, 5, 6), target)
    assert value.item() == pytest.approx(math.log(7))


def test_weighted_cross_entropy_normalizations() -> None:
    logits = torch.log(torch.tensor([[[[0.8, 0.4]], [[0.2, 0.6]]]]))
    target = torch.tensor([[[0, 1]]])
    nll = [-math.log(0.8), -math.log(0.6)]
    expected = {
        "weights": (nll[0] + 3 * nll[1]) / 4,
        "pixels": (nll[0] + 3 * nll[1]) / 2,
        "none": nll[0] + 3 * nll[1],
    }
    for normalize, value in expected.items():
        loss = create_loss(
            "cross_entropy", num_classes=2, class_weights=[1.0, 3.0], normalize=normalize
        )
        assert loss(logits, target).item() == pytest.approx(value)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
def test_cross_entropy_is_torchs(weights: list[float] | None, label_smoothing: float) -> None:
    logits, target = batch(3)
    loss = create_loss(
        "cross_entropy", num_classes=3, class_weights=weights, label_smoothing=label_smoothing
    )
    theirs = F.cross_entropy(
        logits,
        target,
        weight=None if weights is None else torch.tensor(weights),
        ignore_index=255,
        label_smoothing=label_smoothing,
    )
    torch.testing.assert_close(loss(logits, target), theirs)


def test_binary_cross_entropy_is_torchs() -> None:
    logits, target = batch(1)
    kept = target != 255
    theirs = F.binary_cross_entropy_with_logits(logits[:, 0][kept], target[kept].float())
    torch.testing.assert_close(create_loss("cross_entropy", num_classes=1)(logits, target), theirs)


def test_ohem_keeps_the_hardest_pixels() -> None:
    logits, target = batch(4, size=(2, 8, 9))
    losses = F.cross_entropy(logits, target, ignore_index=255, reduction="none")
    losses = losses[target != 255]
    kept = losses.topk(math.ceil(0.3 * losses.numel())).values
    value = create_loss("cross_entropy", num_classes=4, ohem=0.3)(logits, target)
    torch.testing.assert_close(value, kept.mean())
    whole = create_loss("cross_entropy", num_classes=4, ohem=1.0)(logits, target)
    torch.testing.assert_close(whole, losses.mean())


# Overlap losses


def test_dice_by_hand() -> None:
    logits = torch.log(torch.tensor([[[[0.8, 0.4]], [[0.2, 0.6]]]]))
    target = torch.tensor([[[0, 1]]])
    linear = ((1 - 1.6 / 2.2) + (1 - 1.2 / 1.8)) / 2
    squared = ((1 - 1.6 / 1.8) + (1 - 1.2 / 1.4)) / 2
    assert create_loss("dice", num_classes=2)(logits, target).item() == pytest.approx(linear)
    loss = create_loss("dice", num_classes=2, denominator="squared")
    assert loss(logits, target).item() == pytest.approx(squared)


@pytest.mark.parametrize("name", ["dice", "jaccard", "tversky", "lovasz_softmax"])
def test_perfect_prediction_costs_nothing(name: str) -> None:
    _, target = batch(4, ignore_index=0)
    assert create_loss(name, num_classes=4)(hard(target, 4), target).item() == 0


def test_dice_averages_present_classes_only() -> None:
    target = torch.zeros(1, 2, 2, dtype=torch.long)
    assert create_loss("dice", num_classes=9)(hard(target, 9), target).item() == 0


def test_dice_denominators_agree_on_hard_predictions() -> None:
    _, target = batch(3, ignore_index=0)
    guess = hard(target.roll(1, 1), 3)
    values = [
        create_loss("dice", num_classes=3, denominator=kind)(guess, target).item()
        for kind in ("sum", "squared")
    ]
    assert values[0] == pytest.approx(values[1])


def test_tversky_holds_dice_and_jaccard() -> None:
    logits, target = batch(4)
    half = create_loss("tversky", num_classes=4, alpha=0.5, beta=0.5, smooth=1e-12)
    whole = create_loss("tversky", num_classes=4, alpha=1.0, beta=1.0)
    torch.testing.assert_close(
        half(logits, target), create_loss("dice", num_classes=4, smooth=1e-12)(logits, target)
    )
    torch.testing.assert_close(
        whole(logits, target), create_loss("jaccard", num_classes=4)(logits, target)
    )


def test_lovasz_of_hard_predictions_is_one_minus_iou() -> None:
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, 3, (2, 6, 7), generator=generator)
    guess = torch.randint(0, 3, (2, 6, 7), generator=generator)
    ious = [
        ((guess == c) & (target == c)).sum() / ((guess == c) | (target == c)).sum()
        for c in range(3)
    ]
    value = create_loss("lovasz_softmax", num_classes=3)(hard(guess, 3), target)
    assert value.item() == pytest.approx(1 - float(torch.stack(ious).mean()))


def test_focal_without_gamma_is_scaled_cross_entropy() -> None:
    logits, target = batch(4)
    focal = create_loss("focal", num_classes=4, gamma=0.0, alpha=0.25)(logits, target)
    torch.testing.assert_close(focal, 0.25 * F.cross_entropy(logits, target, ignore_index=255))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [0.0, 0.4, 1.0])
def test_dice_ce_in_one_pass_has_the_gradient_of_its_parts(weighted: bool, ignored: float) -> None:
    torch.manual_seed(3)
    logits = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    target = torch.randint(0, 4, (2, 6, 7))  # class 4 is absent
    target[torch.rand(2, 6, 7) < ignored] = 255
    if ignored == 0.4:
        logits.masked_fill_((target == 255).unsqueeze(1), float("nan"))
    weights = torch.rand(5) if weighted else None
    gradients = []
    for function in (
        lambda z: dice_ce(z, target, class_weights=weights, dice_weight=0.7, ce_weight=1.3),
        lambda z: 1.3 * cross_entropy(z, target, class_weights=weights) + 0.7 * dice(z, target),
    ):
        leaf = logits.clone().requires_grad_()
        loss = function(leaf)
        loss.backward()
        gradients.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_dice_ce_is_the_sum_of_its_parts() -> None:
    logits, target = batch(3)
    both = create_loss("dice_ce", num_classes=3, dice_weight=0.5, ce_weight=2.0)(logits, target)
    dice = create_loss("dice", num_classes=3)(logits, target)
    torch.testing.assert_close(
        both, 0.5 * dice + 2 * F.cross_entropy(logits, target, ignore_index=255)
    )


# Peers


def test_agrees_with_segmentation_models_pytorch() -> None:
    peer = pytest.importorskip("segmentation_models_pytorch").losses
    logits, target = batch(4, ignore_index=255, size=(2, 9, 8))
    pairs: list[tuple[str, dict[str, Any], Any]] = [
        ("dice", {}, peer.DiceLoss("multiclass", ignore_index=255)),
        ("lovasz_softmax", {}, peer.LovaszLoss("multiclass", ignore_index=255)),
        (
            "tversky",
            {"alpha": 0.3, "beta": 0.7},
            peer.TverskyLoss("multiclass", ignore_index=255, alpha=0.3, beta=0.7),
        ),
    ]
    for name, options, theirs in pairs:
        ours = create_loss(name, num_classes=4, **options)(logits, target)
        torch.testing.assert_close(ours, theirs(logits, target), msg=name, rtol=1e-4, atol=1e-5)
    whole = target.masked_fill(target == 255, 0)
    ours = create_loss("jaccard", num_classes=4)(logits, whole)
    torch.testing.assert_close(ours, peer.JaccardLoss("multiclass")(logits, whole))


@pytest.mark.slow
def test_agrees_with_monai() -> None:
    peer = pytest.importorskip("monai.losses")
    logits, target = batch(4, ignore_index=0)
    truth = target.unsqueeze(1)
    common = {"softmax": True, "to_onehot_y": True, "batch": True}
    small = {"smooth_nr": 1e-6, "smooth_dr": 1e-6}
    pairs: list[tuple[dict[str, Any], Any]] = [
        ({"denominator": "sum"}, peer.DiceLoss(**common, **small)),
        ({"denominator": "squared"}, peer.DiceLoss(**common, **small, squared_pred=True)),
    ]
    for options, theirs in pairs:
        ours = create_loss("dice", num_classes=4, **options)(logits, target)
        torch.testing.assert_close(ours, theirs(logits, truth))
    theirs = peer.TverskyLoss(**common, **small, alpha=0.3, beta=0.7)
    ours = create_loss("tversky", num_classes=4)(logits, target)
    torch.testing.assert_close(ours, theirs(logits, truth))


def test_binary_focal_is_torchvisions() -> None:
    peer = pytest.importorskip("torchvision.ops")
    logits, target = batch(1)
    kept = target != 255
    theirs = peer.sigmoid_focal_loss(
        logits[:, 0][kept], target[kept].float(), alpha=0.25, gamma=2.0, reduction="mean"
    )
    torch.testing.assert_close(create_loss("focal", num_classes=1)(logits, target), theirs)


# Borders and boundaries


def brute_border(ids: np.ndarray, w0: float, sigma: float) -> np.ndarray:
    """Equation 2 with distances to every object over the whole image."""
    grid = np.indices(ids.shape).reshape(2, -1).T
    rows = [
        np.sqrt(((grid[:, None] - np.argwhere(ids == label)[None]) ** 2).sum(-1)).min(1)
        for label in np.unique(ids[ids > 0])
    ]
    distances = np.sort(np.stack(rows), 0)
    weights = w0 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))
    return np.where(ids == 0, weights.reshape(ids.shape), 0)


def test_border_weights_equal_brute_force() -> None:
    ids = np.zeros((24, 30), dtype=np.int32)
    ids[2:9, 3:10], ids[4:12, 13:20], ids[15:22, 5:25] = 7, 3, 900
    np.testing.assert_allclose(
        border_weight_map(ids), brute_border(ids, 10.0, 5.0), rtol=1e-5, atol=1e-6
    )
    narrow = border_weight_map(ids, w0=4.0, sigma=1.0)
    np.testing.assert_allclose(narrow, brute_border(ids, 4.0, 1.0), rtol=1e-5, atol=1e-6)


def test_border_weights_of_one_cell_are_zero() -> None:
    ids = np.zeros((10, 10), dtype=np.uint8)
    assert border_weight_map(ids).sum() == 0
    ids[3:6, 3:6] = 1
    assert border_weight_map(ids).sum() == 0
    assert border_weight_map(np.ones((4, 4), dtype=np.int64)).sum() == 0


def test_border_weights_are_bounded_and_symmetric() -> None:
    ids = np.zeros((11, 21), dtype=np.int64)
    ids[3:8, 2:9], ids[3:8, 12:19] = 1, 2
    weights = border_weight_map(ids)
    assert weights.min() >= 0
    assert weights.max() <= 10
    np.testing.assert_allclose(weights, weights[:, ::-1])
    assert weights[5, 10] == pytest.approx(10 * math.exp(-(4**2) / 50))


def test_border_weights_are_found_from_the_mask() -> None:
    target = torch.zeros(1, 11, 21, dtype=torch.long)
    target[0, 3:8, 2:9], target[0, 3:8, 12:19] = 1, 1
    ids = target[0].numpy().copy()
    ids[3:8, 12:19] = 2
    logits = torch.randn(1, 2, 11, 21)
    loss = create_loss("border_weighted_cross_entropy", num_classes=2)
    given_map = torch.from_numpy(border_weight_map(ids)).unsqueeze(0)
    expected = ((1 + given_map) * F.cross_entropy(logits, target, reduction="none")).mean()
    torch.testing.assert_close(loss(logits, target), expected)
    torch.testing.assert_close(loss(logits, target, given_map), expected)
    flat = create_loss("border_weighted_cross_entropy", num_classes=2, w0=0.0)
    torch.testing.assert_close(flat(logits, target), F.cross_entropy(logits, target))


def test_signed_distances_by_hand() -> None:
    target = torch.tensor([[[0, 0, 0, 1, 1, 0]]])
    truth = F.one_hot(target, 3).movedim(-1, 1).bool()
    valid = torch.tensor([[[True, True, True, True, True, False]]])
    distances = signed_distances(truth & valid.unsqueeze(1), valid)
    assert distances[0, 1, 0].tolist() == [3, 2, 1, 0, -1, 1]
    assert distances[0, 0, 0].tolist() == [-2, -1, 0, 1, 2, 3]
    assert distances[0, 2].abs().sum() == 0


def test_boundary_loss_by_hand() -> None:
    target = torch.tensor([[[0, 0, 0, 1]]])
    probability = torch.tensor([0.1, 0.2, 0.5, 0.9])
    logits = torch.log(torch.stack([1 - probability, probability])).view(1, 2, 1, 4)
    second = (0.1 * 3 + 0.2 * 2 + 0.5 * 1 + 0) / 4
    first = (0.9 * -2 + 0.8 * -1 + 0 + 0.1 * 1) / 4
    loss = create_loss("boundary", num_classes=2)
    assert loss(logits, target).item() == pytest.approx((first + second) / 2)
    maps = signed_distances(F.one_hot(target, 2).movedim(-1, 1).bool(), target >= 0)
    assert loss(logits, target, maps).item() == pytest.approx((first + second) / 2)
    with pytest.raises(ShapeError, match="distances"):
        loss(logits, target, maps[:, :1])
