"""Learning-rate schedules against their formulas; optimisers by name; checks of options."""

import math
from typing import Any

import pytest
import torch
from fit_toys import Tiles, toy_net, toy_task
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import segcore
from segcore.engine.optim import OPTIMIZERS, SCHEDULES, create_optimizer, learning_rate_factor
from segcore.errors import OptionError, SegcoreError, UnknownNameError
from segcore.tasks import Step, Task


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 0.7, 0.9, 1.0])
def test_schedules_equal_their_formulas(progress: float) -> None:
    expected = {
        "constant": 1.0,
        "poly": (1 - progress) ** 0.9,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
        "step": 1.0 if progress < 2 / 3 else 0.1 if progress < 8 / 9 else 0.01,
    }
    assert set(expected) == set(SCHEDULES)
    for name, value in expected.items():
        assert learning_rate_factor(name, progress) == pytest.approx(value, abs=1e-12)


def test_warmup_rises_in_a_line_then_the_schedule_runs_over_the_rest() -> None:
    def factor(progress: float) -> float:
        return learning_rate_factor("poly", progress, warmup_fraction=0.2)

    assert factor(0.0) == pytest.approx(0.001)
    assert factor(0.1) == pytest.approx((0.001 + 1) / 2)
    assert factor(0.2) == pytest.approx(1.0)
    assert factor(0.6) == pytest.approx(0.5**0.9)
    assert factor(1.0) == pytest.approx(0.0)


@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.floats(-0.5, 1.5),
    st.floats(0, 0.99),
)
def test_factor_stays_in_0_1(schedule: str, progress: float, warmup: float) -> None:
    assert 0.0 <= learning_rate_factor(schedule, progress, warmup_fraction=warmup) <= 1.0


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_optimisers_descend_a_parabola(name: str) -> None:
    weight = nn.Parameter(torch.tensor([2.0, -3.0]))
    optimizer = create_optimizer(name, [weight], lr=0.05, weight_decay=0.0, momentum=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert weight.detach().abs().max() < 0.2


def test_sgd_is_the_textbook_rule() -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    optimizer = create_optimizer("sgd", [weight], lr=0.1, weight_decay=0.5, momentum=0.9)
    value, velocity = 1.0, 0.0
    for _ in range(3):
        optimizer.zero_grad()
        (2 * weight).backward()
        optimizer.step()
        velocity = 0.9 * velocity + 2 + 0.5 * value
        value -= 0.1 * velocity
    assert weight.item() == pytest.approx(value, rel=1e-6)


WRONG: list[tuple[dict[str, Any], type[SegcoreError], str]] = [
    ({"optimizer": "adan"}, UnknownNameError, "adamw"),
    ({"schedule": "cosin"}, UnknownNameError, "did you mean 'cosine'"),
    ({"precision": "fp8"}, UnknownNameError, "bf16"),
    ({"epochs": 0}, OptionError, "epochs is 0"),
    ({"epochs": 1.5}, OptionError, "epochs is 1.5"),
    ({"lr": -1.0}, OptionError, "lr is -1.0"),
    ({"lr": math.nan}, OptionError, "lr is nan"),
    ({"weight_decay": -0.1}, OptionError, "weight_decay is -0.1"),
    ({"momentum": 1.0}, OptionError, "momentum is 1.0"),
    ({"warmup_fraction": 1.0}, OptionError, "warmup_fraction is 1.0"),
    ({"accumulate": 0}, OptionError, "accumulate is 0"),
    ({"clip_norm": 0.0}, OptionError, "clip_norm is 0.0"),
    ({"ema_decay": 1.0}, OptionError, "ema_decay is 1.0"),
    ({"max_minutes": 0}, OptionError, "max_minutes is 0"),
    ({"report_steps": 0}, OptionError, "report_steps is 0"),
    ({"device": "abacus"}, OptionError, "device is 'abacus'"),
    ({"resume": {"epoch": 1}}, SegcoreError, "missing: average"),
]


@pytest.mark.parametrize(("wrong", "kind", "text"), WRONG)
def test_wrong_options_fail_before_any_work(
    wrong: dict[str, Any], kind: type[SegcoreError], text: str
) -> None:
    train = Tiles()
    with pytest.raises(kind, match=text):
        segcore.fit(toy_task(), toy_net(), train, None, **({"epochs": 1, "lr": 0.1} | wrong))
    assert train.opened == []


class Phased(Task):
    """Only declares steps."""

    def __init__(self, *steps: Step) -> None:
        self.declared = steps

    def steps(self) -> tuple[Step, ...]:
        return self.declared


def phase(name: str, start: float, stop: float) -> Step:
    return Step(name, lambda model, batch: {}, start=start, stop=stop)


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ((), "give at least one"),
        ((phase("a", 0, 1), phase("a", 0, 1)), r"named \['a', 'a'\]"),
        ((phase("a", 0, 0.4), phase("b", 0.5, 1)), "no step of the task runs from 0.4"),
        ((phase("a", 0.5, 0.5),), "spans 0.5..0.5"),
        ((phase("a", 0, 0.9),), "no step of the task runs from 0.9"),
    ],
)
def test_steps_must_cover_the_run(steps: tuple[Step, ...], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        segcore.fit(Phased(*steps), toy_net(), Tiles(), None, epochs=1, lr=0.1)
