"""Losses: the contract that every name keeps, what is refused, and sums."""

import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from segcore.errors import DataError, OptionError, ShapeError, UnknownNameError
from segcore.losses import (
    LOSSES,
    WeightedSum,
    create_loss,
    list_losses,
)

NAMES = sorted(LOSSES)
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *[(name, {}) for name in NAMES],
    ("cross_entropy", {"label_smoothing": 0.2}),
    ("cross_entropy", {"ohem": 0.4}),
    ("cross_entropy", {"normalize": "pixels"}),
    ("dice", {"denominator": "squared"}),
    ("dice", {"per_image": True}),
    ("lovasz_softmax", {"per_image": True}),
    ("focal", {"gamma": 0.5}),
]


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


# Every name


@pytest.mark.parametrize("num_classes", [1, 2, 5])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_gradient_is_right(name: str, options: dict[str, Any], num_classes: int) -> None:
    loss = create_loss(name, num_classes=num_classes, **options)
    logits, target = batch(num_classes, size=(2, 3, 4), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (logits,))


@pytest.mark.parametrize("num_classes", [1, 4])
@pytest.mark.parametrize("size", [(2, 5, 7), (1, 1, 1), (1, 3, 4, 5)])
@pytest.mark.parametrize("name", NAMES)
def test_gives_a_scalar_with_finite_gradient(
    name: str, size: tuple[int, ...], num_classes: int
) -> None:
    if name == "border_weighted_cross_entropy" and len(size) == 4:
        pytest.skip("border weights are defined on images")
    logits, target = batch(num_classes, size=size)
    value = create_loss(name, num_classes=num_classes)(logits, target)
    value.backward()
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("num_classes", [1, 4])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_all_ignored_batch_is_zero(name: str, options: dict[str, Any], num_classes: int) -> None:
    weights = [1.0, 2.0] if num_classes == 1 else [1.0, 2.0, 0.5, 0.0]
    loss = create_loss(name, num_classes=num_classes, class_weights=weights, **options)
    logits = torch.randn(2, num_classes, 5, 6, requires_grad=True)
    value = loss(logits, torch.full((2, 5, 6), 255))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    ignore_index=st.sampled_from([255, 11, 4, 0, -100, -1, 1000]),
    noise=st.sampled_from([1.0, 1e4, math.inf, math.nan]),
)
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_ignored_logits_change_nothing(
    name: str, options: dict[str, Any], seed: int, ignore_index: int, noise: float
) -> None:
    loss = create_loss(name, num_classes=4, ignore_index=ignore_index, **options)
    logits, target = batch(4, ignore_index=ignore_index, seed=seed)
    changed = logits.detach().clone()
    changed.masked_fill_((target == ignore_index).unsqueeze(1), noise)
    changed.requires_grad_()
    values = [loss(x, target) for x in (logits, changed)]
    for value in values:
        value.backward()
    assert values[0].item() == values[1].item()
    assert logits.grad is not None
    assert changed.grad is not None
    assert torch.equal(logits.grad, changed.grad)


@pytest.mark.parametrize("name", NAMES)
def test_computes_in_float32_under_bf16_autocast(name: str) -> None:
    logits, target = batch(5, size=(2, 16, 16))
    low = logits.detach().bfloat16().requires_grad_()
    loss = create_loss(name, num_classes=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(low, target)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(low.detach().float(), target))
    assert low.grad is not None
    assert torch.isfinite(low.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_equal_class_weights_change_nothing(name: str) -> None:
    logits, target = batch(3)
    plain = create_loss(name, num_classes=3)(logits, target)
    weighted = create_loss(name, num_classes=3, class_weights=[1.0, 1.0, 1.0])(logits, target)
    torch.testing.assert_close(weighted, plain)


@pytest.mark.parametrize("name", NAMES)
def test_survives_extreme_logits(name: str) -> None:
    target = torch.tensor([[[0, 1, 1, 0]]])
    logits = torch.tensor([[[[1e4, 1e4, -1e4, 0.0]], [[-1e4, -1e4, 1e4, 0.0]]]])
    logits.requires_grad_()
    value = create_loss(name, num_classes=2)(logits, target)
    value.backward()
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_one_logit_is_the_second_of_two(name: str) -> None:
    logits, target = batch(1)
    pair = torch.cat([torch.zeros_like(logits), logits], 1)
    one = create_loss(name, num_classes=1)(logits, target)
    if name in ("cross_entropy", "border_weighted_cross_entropy"):
        torch.testing.assert_close(one, create_loss(name, num_classes=2)(pair, target))
    elif name in ("dice", "jaccard", "tversky", "lovasz_softmax", "boundary"):
        two = create_loss(name, num_classes=2, class_weights=[0.0, 1.0])
        torch.testing.assert_close(one, two(pair, target))


@pytest.mark.parametrize("name", NAMES)
def test_pickles_and_prints(name: str) -> None:
    loss = create_loss(name, num_classes=2, class_weights=[1.0, 0.25])
    logits, target = batch(2)
    again = pickle.loads(pickle.dumps(loss))
    assert again(logits, target).item() == loss(logits, target).item()
    assert repr(loss) == f"{name}(num_classes=2, ignore_index=255, class_weights=[1.0, 0.25])"


def test_lists_every_loss() -> None:
    assert list_losses() == NAMES


# What is refused


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'dice'"):
        create_loss("dise", num_classes=2)
    with pytest.raises(OptionError, match="no option power; known: denominator, per_image, smooth"):
        create_loss("dice", num_classes=2, power=2)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dice", {"denominator": "cubed"}),
        ("dice", {"smooth": "much"}),
        ("cross_entropy", {"ohem": 0.0}),
        ("cross_entropy", {"label_smoothing": 1.5}),
        ("cross_entropy", {"normalize": "area"}),
        ("focal", {"alpha": 2.0}),
        ("tversky", {"beta": -1.0}),
        ("border_weighted_cross_entropy", {"sigma": 0.0}),
        ("sum", {}),
        ("sum", {"terms": [{"weight": 1}]}),
        ("sum", {"terms": [{"name": "dice", "smoth": 1}]}),
        ("sum", {"terms": [{"name": "dice", "weight": "a"}]}),
    ],
)
def test_bad_options_fail_when_the_loss_is_built(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        create_loss(name, num_classes=3, **options)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, -1.0], [1.0, 2.0, math.nan]])
def test_bad_class_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(OptionError, match="class_weights"):
        create_loss("dice", num_classes=3, class_weights=weights)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_shapes_and_ids_are_refused(name: str) -> None:
    loss = create_loss(name, num_classes=3)
    with pytest.raises(ShapeError, match="3 classes"):
        loss(torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))
    with pytest.raises(ShapeError, match="target is"):
        loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 4, dtype=torch.long))
    with pytest.raises(DataError, match="the id 3, but there are 3 classes"):
        loss(torch.zeros(1, 3, 1, 2), torch.tensor([[[0, 3]]]))


# Sums


def test_weighted_sum_adds_its_terms() -> None:
    logits, target = batch(3)
    terms = [
        {"name": "dice", "weight": 0.5, "denominator": "squared"},
        {"name": "cross_entropy", "label_smoothing": 0.1},
    ]
    loss = create_loss("sum", num_classes=3, terms=terms)
    assert isinstance(loss, WeightedSum)
    parts = loss.parts(logits, target)
    dice = create_loss("dice", num_classes=3, denominator="squared")(logits, target)
    torch.testing.assert_close(parts["dice"], 0.5 * dice)
    torch.testing.assert_close(loss(logits, target), parts["dice"] + parts["cross_entropy"])
    assert repr(loss).startswith("0.5 * dice(")
    assert " + 1 * cross_entropy(" in repr(loss)


def test_weighted_sum_hands_maps_to_the_terms_that_take_them() -> None:
    logits, target = batch(2, ignore_index=0)
    terms = [{"name": "dice"}, {"name": "border_weighted_cross_entropy"}]
    loss = create_loss("sum", num_classes=2, terms=terms)
    flat = loss(logits, target, torch.zeros(target.shape))
    dice = create_loss("dice", num_classes=2)(logits, target)
    torch.testing.assert_close(flat, dice + F.cross_entropy(logits, target))
    with pytest.raises(OptionError, match="logits and target only"):
        create_loss("dice", num_classes=2)(logits, target, torch.zeros(target.shape))
