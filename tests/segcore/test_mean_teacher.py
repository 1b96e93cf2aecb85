"""Mean teacher: what it learns from images without masks, and that a run of it resumes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fit_toys import CLASSES, Tiles, toy_net
from torch import Tensor, nn

import segcore
from segcore.errors import OptionError
from segcore.tasks import choose_task, get_kind, labels_for
from segcore.tasks.semi_supervised import MeanTeacherTask
from segcore.tasks.semi_supervised.mean_teacher import two_sided

FACTS: dict[str, Any] = {"num_classes": CLASSES, "mean": [0.5] * 3, "std": [0.25] * 3}


class Pairs(Tiles):
    """Labelled tiles, and others of which the mask is left out; the strong view is darker."""

    def epoch(self, number: int, start: int = 0) -> Iterator[Any]:
        others = Tiles(self.steps, self.rank, self.world_size).epoch(number + 500, start)
        for labelled, rest in zip(super().epoch(number, start), others, strict=True):
            image = rest["image"]
            yield {
                "labelled": labelled,
                "unlabelled": {
                    "image": image, "strong": image // 2, "target": torch.zeros(len(image), 3),
                },
            }  # fmt: skip


def task(**options: Any) -> MeanTeacherTask:
    made = segcore.create_task("semi_supervised", **FACTS, **options)
    assert isinstance(made, MeanTeacherTask)
    return made


class Fixed(nn.Module):
    """Logits that are the image's channels, times a learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.factor * x}


def test_only_sure_pixels_of_the_teacher_count() -> None:
    made = segcore.create_task(
        "semi_supervised", num_classes=3, mean=[0.0] * 3, std=[1.0] * 3, cutmix=0.0, threshold=0.8,
        weight=2.0, burn_in=0.0,
    )  # fmt: skip
    logits = torch.zeros(1, 3, 1, 2)
    logits[0, :, 0, 0] = torch.tensor([4.0, 0.0, 0.0])  # 0.965
    logits[0, :, 0, 1] = torch.tensor([0.0, 1.0, 0.0])  # 0.576: not counted
    strong = torch.tensor([[[[1.0, 0.0]], [[2.0, 0.0]], [[0.0, 0.0]]]])
    target = torch.tensor([[[0, 1]]])
    batch = {
        "labelled": {"image": logits, "target": target},
        "unlabelled": {"image": logits, "strong": strong},
    }
    terms = made.training_step(Fixed(), batch)
    expected = F.cross_entropy(strong[..., :1], torch.tensor([[[0]]]))
    torch.testing.assert_close(terms["consistency"], 2.0 * expected / 2)
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(logits, target))


def test_gradients_reach_the_student_alone_and_the_teacher_follows() -> None:
    made, model = task(threshold=0.0, decay=0.5, cutmix=1.0, burn_in=0.0), toy_net()
    batch = next(Pairs().epoch(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.stack(list(made.training_step(model, batch).values())).sum().backward()
    teacher = made.judged(model)
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.dim() > 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0
    made.after_step(model)
    for name, value in teacher.named_parameters():  # the ramp: decay 1/10 at the first step
        torch.testing.assert_close(value.detach(), before[name] + 0.9)
    made = task(decay=0.0)
    made.after_step(model)
    for name, value in made.judged(model).state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name])


def test_the_first_share_of_a_run_learns_from_masks_alone() -> None:
    made, model, batch = task(burn_in=0.3), toy_net(), next(Pairs().epoch(0))
    made.before_step(0.29)
    torch.manual_seed(0)
    alone = made.training_step(model, batch)
    torch.manual_seed(0)
    supervised = segcore.create_task("semantic", **FACTS).training_step(model, batch["labelled"])
    assert alone == supervised
    made.before_step(0.3)
    assert made.training_step(model, batch).keys() == {*alone, "consistency"}
    seen = [set(epoch.metrics) for epoch in fit(toy_net())]
    assert "train/loss/consistency" not in seen[0]
    assert "train/loss/consistency" in seen[-1]


def test_mixed_pixels_keep_their_labels() -> None:
    made = task(cutmix=1.0)
    torch.manual_seed(0)
    numbers = torch.arange(4).view(4, 1, 1)
    image = numbers[:, None].expand(4, 3, 24, 32)
    pseudo, sure = numbers.expand(4, 24, 32), numbers.expand(4, 24, 32) / 4
    mixed, labels, weights = made._cut_and_mix(image, pseudo, sure)
    assert torch.equal(mixed[:, 0], labels)
    assert torch.equal(weights, labels / 4)
    share = (labels != pseudo).float().mean((1, 2))
    assert ((share > 0.4) & (share < 0.6)).all()
    assert torch.equal(labels[3].unique(), torch.tensor([0, 3]))
    alone, _, _ = made._cut_and_mix(image[:1], pseudo[:1], sure[:1])
    assert torch.equal(alone, image[:1])


def fit(model: nn.Module, resume: Any = None, **options: Any) -> Iterator[segcore.Epoch]:
    return segcore.fit(
        task(threshold=0.5), model, Pairs(), Tiles(2), epochs=3, lr=0.02, device="cpu",
        report_steps=2, resume=resume, **options,
    )  # fmt: skip


def test_all_views_are_halved_in_the_first_part_of_a_progressive_run() -> None:
    batch = next(iter(Pairs().epoch(0)))
    small = task().smaller(batch)
    assert small["labelled"]["image"].shape[-2:] == small["labelled"]["target"].shape[-2:] == (6, 6)
    rest = small["unlabelled"]
    assert rest["image"].shape == rest["strong"].shape == (4, 3, 6, 6)
    assert rest["target"] is batch["unlabelled"]["target"]
    figures = [epoch.metrics for epoch in fit(toy_net(), progressive=0.5)]
    assert 0 <= figures[-1]["val/miou"] <= 1


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_resumed_run_ends_with_the_same_teacher(ema_decay: float | None) -> None:
    whole = toy_net()
    states, last, figures = [], {}, {}
    for epoch in fit(whole, ema_decay=ema_decay):
        states.append(epoch.state())
        last, figures = epoch.weights(), epoch.metrics
    assert figures["train/loss/consistency"] > 0
    different = [k for k in last if not torch.equal(last[k], whole.state_dict()[k])]
    assert different  # the teacher or the average was kept, not the student
    for state in states[:-1]:
        resumed = toy_net()
        for epoch in fit(resumed, resume=state, ema_decay=ema_decay):
            again = epoch.weights()
        assert all(torch.equal(again[name], value) for name, value in last.items())
        assert all(
            torch.equal(a, b)
            for a, b in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True)
        )


def test_one_logit_is_two_classes() -> None:
    logits = torch.tensor([[[[3.0, -1.0]]]])
    probability = two_sided(logits).softmax(1)[:, 1:]
    torch.testing.assert_close(probability, logits.sigmoid())
    made = segcore.create_task("semi_supervised", num_classes=1, mean=[0.5], std=[0.2], burn_in=0.0)
    model = nn.Conv2d(1, 1, 3, padding=1)
    image = torch.rand(2, 1, 8, 8)
    batch = {
        "labelled": {"image": image, "target": torch.randint(2, (2, 8, 8))},
        "unlabelled": {"image": image, "strong": image},
    }
    assert all(term.isfinite() for term in made.training_step(model, batch).values())


def test_options_are_checked() -> None:
    with pytest.raises(OptionError, match="threshold of the mean teacher is 2"):
        task(threshold=2)
    with pytest.raises(OptionError, match=r"no option treshold; known: threshold, weight"):
        task(treshold=0.5)
    kind = get_kind("semi_supervised")
    assert labels_for("semi_supervised") == labels_for("semantic") == "semantic"

    class Data:
        name, tasks = "toy", ("semantic",)

    assert choose_task("unet", Data, "semi_supervised") == "semi_supervised"
    assert choose_task("torchvision:fcn_resnet50", Data, "semi_supervised") == "semi_supervised"
    assert choose_task("unet", Data) == "semantic"
    with pytest.raises(OptionError, match="mask_rcnn is for the task instance"):
        choose_task("mask_rcnn", Data, "semi_supervised")
    assert isinstance(kind.of("unet", {}).create_task(**FACTS), MeanTeacherTask)
