"""The one training loop: exact resume, options, errors, tasks that it has never seen."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_toys import Boxes, BoxNet, BoxTask, Tiles, ToyNet, toy_net, toy_task
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import segcore
from segcore.engine import CheckpointStore
from segcore.errors import CheckpointError, DataError, SegcoreError
from segcore.tasks import Batch, Step, Task
from segcore.tasks.semantic import SemanticTask

Weights = Mapping[str, Tensor]
Start = Callable[[Mapping[str, Any] | None], Any]


def equal(first: Weights, second: Weights) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def start_toy(resume: Mapping[str, Any] | None = None, **options: Any) -> Any:
    options = {"epochs": 2, "lr": 0.01, "device": "cpu"} | options
    return segcore.fit(toy_task(), toy_net(), Tiles(), Tiles(2), resume=resume, **options)


def resumes_exactly(start: Start, folder: Path) -> None:
    """Resume from each report, through the disk; compare weights, figures and positions."""
    store = CheckpointStore(folder, keep=1000)
    straight = []
    for epoch in start(None):
        store.save(epoch.state(), epoch.step)
        straight.append((epoch, epoch.weights()))
        torch.rand(3)  # what the caller draws must not matter
    for place, (report, _) in enumerate(straight):
        state = store.load(folder / f"step-{report.step:012d}.pt")
        torch.manual_seed(99)
        resumed = [(epoch, epoch.weights()) for epoch in start(state)]
        assert len(resumed) == len(straight) - place - 1
        for (left, left_weights), (right, right_weights) in zip(
            straight[place + 1 :], resumed, strict=True
        ):
            assert equal(left_weights, right_weights), f"from {report.step} to {left.step}"
            assert (left.number, left.step, left.last) == (right.number, right.step, right.last)
            for name, value in left.metrics.items():
                if name != "images_per_s":
                    assert value == pytest.approx(right.metrics[name], rel=1e-12), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "bf16", "accumulate": 2, "schedule": "cosine"},
        {"progressive": 0.35},
        {"ema_decay": 0.9, "clip_norm": 0.1, "warmup_fraction": 0.3, "channels_last": True},
        {"optimizer": "sgd", "accumulate": 3},
        {"optimizer": "rmsprop", "ema_decay": 0.9},
    ],
)
def test_resume_from_any_report_is_bit_equal(options: dict[str, Any], tmp_path: Path) -> None:
    resumes_exactly(lambda state: start_toy(state, report_steps=1, **options), tmp_path)


@pytest.mark.parametrize("step", [1, 5, 7])  # of 10; at 5 an epoch ends
def test_an_end_that_is_asked_for_reports_that_step_and_resumes_exactly(step: int) -> None:
    calls = 0

    def ending() -> bool:
        nonlocal calls
        calls += 1
        return calls == step

    options = {"ema_decay": 0.9, "report_steps": 4}
    *_, straight = [epoch.weights() for epoch in start_toy(**options)]
    report, state = [(epoch, epoch.state()) for epoch in start_toy(**options, ending=ending)][-1]
    assert (report.step, report.complete, report.last) == (step, False, False)
    *_, resumed = [epoch.weights() for epoch in start_toy(state, **options)]
    assert equal(resumed, straight)


class Noisy(Dataset[dict[str, Any]]):
    """A dataset in the usual style: what it draws at random comes from torch's global generator."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Any]:
        target = torch.full((8, 8), index % 3)
        return {"image": torch.rand(3, 8, 8) / 4 + index % 3 / 3, "target": target}


def test_resume_with_a_plain_shuffling_dataloader_is_bit_equal(tmp_path: Path) -> None:
    def start(state: Mapping[str, Any] | None) -> Any:
        train = DataLoader(Noisy(), batch_size=3, shuffle=True)
        options: dict[str, Any] = {"epochs": 2, "lr": 0.01, "device": "cpu", "report_steps": 1}
        return segcore.fit(toy_task(), toy_net(), train, None, **options, resume=state)

    resumes_exactly(start, tmp_path)


def test_resume_of_a_task_with_two_optimisers_is_bit_equal(tmp_path: Path) -> None:
    def start(state: Mapping[str, Any] | None) -> Any:
        torch.manual_seed(0)
        options: dict[str, Any] = {"epochs": 2, "lr": 0.01, "device": "cpu", "report_steps": 1}
        return segcore.fit(BoxTask(), BoxNet(), Boxes(), Boxes(2), **options, resume=state)

    resumes_exactly(start, tmp_path)


def test_detection_with_two_alternating_optimisers_trains() -> None:
    torch.manual_seed(0)
    task, model = BoxTask(), BoxNet()
    options: dict[str, Any] = {"lr": 0.02, "schedule": "constant", "device": "cpu"}
    epochs = list(segcore.fit(task, model, Boxes(), Boxes(2), epochs=8, **options))
    first, last = epochs[0].metrics, epochs[-1].metrics
    parts = {"train/loss/critic/told", "train/loss/detector/box", "train/loss/detector/fooled"}
    assert parts | {"lr/critic", "lr/detector", "val/median_error"} <= set(last)
    assert last["val/images"] == 8
    assert last["train/loss/detector/box"] < first["train/loss/detector/box"]
    assert last["lr/critic"] == pytest.approx(0.5 * last["lr/detector"])
    assert last["train/loss"] == pytest.approx(sum(last[part] for part in parts))
    assert task.batches == 8 * 3
    assert all(parameter.requires_grad for parameter in model.parameters())


class Alternating(Task):
    """Two scalars, each of which its own step may move; records what it saw."""

    def __init__(self, *spans: tuple[str, float, float]) -> None:
        self.spans = spans
        self.seen: list[tuple[str, bool, bool]] = []

    def steps(self) -> list[Step]:
        return [self._step(*span) for span in self.spans]

    def _step(self, name: str, start: float, stop: float) -> Step:
        def loss(model: Any, batch: Batch) -> dict[str, Tensor]:
            self.seen.append((name, model.a.requires_grad, model.b.requires_grad))
            return {"pull": (model.a - 3) ** 2 * (model.b + 2) ** 2}

        return Step(name, loss, lambda model: [getattr(model, name)], start=start, stop=stop)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.0))
        self.b = nn.Parameter(torch.tensor(1.0))


def test_steps_alternate_and_each_moves_its_own_parameters() -> None:
    task, model = Alternating(("a", 0, 1), ("b", 0, 1)), Pair()
    options: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant"}
    list(segcore.fit(task, model, Tiles(1), None, epochs=1, lr=0.01, device="cpu", **options))
    assert task.seen == [("a", True, False), ("b", False, True)]
    a = 1 - 0.01 * 2 * (1 - 3) * (1 + 2) ** 2
    b = 1 - 0.01 * (a - 3) ** 2 * 2 * (1 + 2)  # sees the a that was just moved
    assert float(model.a.detach()) == pytest.approx(a)
    assert float(model.b.detach()) == pytest.approx(b)


def test_phases_run_in_their_span_of_the_run() -> None:
    task = Alternating(("a", 0.0, 0.5), ("b", 0.5, 1.0))
    list(segcore.fit(task, Pair(), Tiles(4), None, epochs=1, lr=0.01, device="cpu"))
    assert [name for name, _, _ in task.seen] == ["a", "a", "b", "b"]


def test_frozen_parameters_stay_and_keep_their_flag() -> None:
    model = toy_net()
    model.stem.requires_grad_(False)
    before = {name: value.clone() for name, value in model.stem.named_parameters()}
    list(segcore.fit(toy_task(), model, Tiles(), None, epochs=1, lr=0.1, device="cpu"))
    assert equal(before, dict(model.stem.named_parameters()))
    assert not any(parameter.requires_grad for parameter in model.stem.parameters())
    assert all(parameter.requires_grad for parameter in model.head.parameters())


def test_a_model_learns_and_reports_say_so() -> None:
    epochs = list(start_toy(epochs=10, lr=0.03, report_steps=2))
    assert [(e.number, e.step, e.complete, e.last) for e in epochs[:3]] == [
        (0, 2, False, False),
        (0, 4, False, False),
        (1, 5, True, False),
    ]
    assert epochs[-1].last
    assert epochs[-1].step == 10 * 5
    assert epochs[-1].metrics["val/miou"] > 0.8
    assert "val/miou" not in epochs[0].metrics
    terms = [epochs[0].metrics[f"train/loss/{term}"] for term in ("cross_entropy", "aux")]
    assert epochs[0].metrics["train/loss"] == pytest.approx(sum(terms))
    assert epochs[0].metrics["images_per_s"] > 0


def test_lr_follows_the_schedule_per_step() -> None:
    rates = [e.metrics["lr"] for e in start_toy(lr=0.5, report_steps=1)]
    assert rates == pytest.approx([0.5 * (1 - step / 10) ** 0.9 for step in range(10)])


def test_accumulated_batches_equal_one_large_batch() -> None:
    class Merged(Tiles):
        def __len__(self) -> int:
            return 2

        def epoch(self, number: int, start: int = 0) -> Any:
            batches = list(Tiles(4).epoch(number))[2 * start :]
            for i in range(0, len(batches), 2):
                pair = batches[i : i + 2]
                yield {key: torch.cat([b[key] for b in pair]) for key in ("image", "target")}

    results = []
    for loader, accumulate in ((Tiles(4), 2), (Merged(), 1)):
        model = toy_net(norm=False, dropout=0.0)
        options: dict[str, Any] = {"epochs": 2, "lr": 0.1, "optimizer": "sgd", "device": "cpu"}
        run = segcore.fit(toy_task(), model, loader, None, accumulate=accumulate, **options)
        results.append([epoch.weights() for epoch in run][-1])
    for name, value in results[0].items():
        assert torch.allclose(value, results[1][name], atol=1e-6), name


def test_average_of_weights_is_validated_and_reported() -> None:
    model = toy_net()
    fitting = {"epochs": 2, "lr": 0.1, "ema_decay": 0.99, "device": "cpu"}
    *_, epoch = segcore.fit(toy_task(), model, Tiles(), None, **fitting)
    assert not equal(epoch.weights(), model.state_dict())
    assert list(epoch.weights()) == list(model.state_dict())


def test_average_follows_its_formula() -> None:
    from segcore.tasks.ema import WeightAverage

    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average, expected = WeightAverage(model, decay=0.5), 1.0
    for step in range(12):
        nn.init.constant_(model.weight, float(step))
        average.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert average.model.weight.item() == pytest.approx(expected)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains(precision: str) -> None:
    epochs = list(start_toy(epochs=4, lr=0.03, precision=precision))
    assert epochs[-1].metrics["train/loss"] < 0.8 * epochs[0].metrics["train/loss"]
    assert all(value.dtype != torch.float16 for value in epochs[-1].weights().values())


def test_clock_stops_the_run_and_the_schedule_follows_it() -> None:
    epochs = list(start_toy(epochs=1, max_minutes=1.0 / 60, schedule="poly", lr=0.1))
    assert epochs[-1].last
    assert epochs[-1].complete
    assert epochs[-1].metrics["lr"] < 0.01
    assert "val/miou" in epochs[-1].metrics
    assert not any(epoch.last for epoch in epochs[:-1])
    assert list(start_toy(epochs[-1].state(), epochs=1, max_minutes=1.0 / 60)) == []
    longer = list(start_toy(epochs[-1].state(), epochs=1, max_minutes=1.2 / 60))
    assert longer[-1].step > epochs[-1].step


def test_resume_seeks_and_a_finished_run_yields_nothing() -> None:
    states = [(epoch.step, epoch.state()) for epoch in start_toy(report_steps=3)]
    train = Tiles()
    options: dict[str, Any] = {"epochs": 2, "lr": 0.01, "device": "cpu"}
    list(segcore.fit(toy_task(), toy_net(), train, None, **options, resume=dict(states)[3]))
    assert train.opened == [(0, 3), (1, 0)]
    model = toy_net()
    last = states[-1][1]
    assert list(segcore.fit(toy_task(), model, train, None, **options, resume=last)) == []
    assert equal(last["model"], model.state_dict())


def test_model_returns_to_its_modes_after_validation() -> None:
    model = toy_net()
    task = toy_task()

    class Watch(SemanticTask):
        modes: tuple[bool, ...] = ()

        def training_step(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
            Watch.modes = tuple(module.training for module in model.modules())
            model.get_submodule("stem.1").eval()  # a caller's frozen batch norm
            return super().training_step(model, batch)

    watch = Watch.__new__(Watch)
    watch.__dict__.update(task.__dict__)
    list(segcore.fit(watch, model, Tiles(1), Tiles(1), epochs=2, lr=0.1, device="cpu"))
    assert Watch.modes.count(False) == 1


class Exploding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = ToyNet()
        self.calls = 0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        outputs: dict[str, Tensor] = self.net(x)
        return outputs | {"aux": outputs["aux"] * math.nan} if self.calls == 3 else outputs


def test_non_finite_loss_names_step_term_and_way_out() -> None:
    options: dict[str, Any] = {"epochs": 2, "lr": 0.25, "schedule": "constant", "device": "cpu"}
    run = segcore.fit(toy_task(), Exploding(), Tiles(), None, **options)
    with pytest.raises(
        SegcoreError, match=r"loss aux is not finite by step 3 \(learning rate 0.25\): lower lr"
    ):
        list(run)


def test_empty_and_short_loaders_are_told() -> None:
    with pytest.raises(DataError, match="train_loader has no batches"):
        segcore.fit(toy_task(), toy_net(), Tiles(0), None, epochs=1, lr=0.1)
    with pytest.raises(DataError, match="val_loader has no batches"):
        segcore.fit(toy_task(), toy_net(), Tiles(), Tiles(0), epochs=1, lr=0.1)
    with pytest.raises(SegcoreError, match=r"train_loader \(generator\) has no length"):
        segcore.fit(toy_task(), toy_net(), Tiles().epoch(0), None, epochs=1, lr=0.1)

    class Short(Tiles):
        def __len__(self) -> int:
            return self.steps + 2

    with pytest.raises(DataError, match="ended 1 batches before its len"):
        list(segcore.fit(toy_task(), toy_net(), Short(), None, epochs=1, lr=0.1, device="cpu"))


def test_wrong_target_ids_stop_training_before_the_device_sees_them() -> None:
    task = segcore.create_task("semantic", num_classes=2, mean=[0.5] * 3, std=[0.25] * 3)
    with pytest.raises(DataError, match=r"target of a, b, c, d has class id 2"):
        list(segcore.fit(task, toy_net(), Tiles(), None, epochs=1, lr=0.1))


def test_reports_that_were_left_behind_refuse_to_speak_for_the_present() -> None:
    reports = start_toy()
    first = next(reports)
    first.state()
    next(reports)
    with pytest.raises(CheckpointError, match=r"state\(\) of step 5 was asked at step 10"):
        first.state()
    with pytest.raises(CheckpointError, match="weights"):
        first.weights()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"optimizer": "sgd"}, "has optimizer 'adamw', this run 'sgd'"),
        ({"seed": 1}, "has seed 0, this run 1"),
        ({"accumulate": 2}, "has steps_per_epoch 5, this run 3"),
    ],
)
def test_state_of_another_run_is_refused(change: dict[str, Any], text: str) -> None:
    state = next(start_toy()).state()
    with pytest.raises(CheckpointError, match=text):
        start_toy(state, **change)


def test_state_of_another_model_is_refused() -> None:
    state = next(start_toy()).state()
    run = segcore.fit(toy_task(), ToyNet(norm=False), Tiles(), None, epochs=2, lr=1, resume=state)
    with pytest.raises(CheckpointError, match="holds another model"):
        next(run)


def test_a_state_may_be_resumed_twice() -> None:
    state = next(start_toy()).state()
    first = [epoch.weights() for epoch in start_toy(state)]
    second = [epoch.weights() for epoch in start_toy(state)]
    assert equal(first[-1], second[-1])


@pytest.mark.slow
def test_compiled_steps_train_and_resume(tmp_path: Path) -> None:
    plain = list(start_toy(epochs=2, lr=0.03))[-1]
    compiled = list(start_toy(epochs=2, lr=0.03, compile=True))[-1]
    assert compiled.metrics["train/loss"] == pytest.approx(plain.metrics["train/loss"], rel=0.3)
    assert list(compiled.weights()) == list(plain.weights())
    resumes_exactly(lambda state: start_toy(state, compile=True, report_steps=2), tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", None])
def test_an_accelerator_may_be_named_in_each_way(device: str | None) -> None:
    for epoch in segcore.fit(toy_task(), toy_net(), Tiles(2), epochs=1, lr=0.01, device=device):
        assert math.isfinite(epoch.metrics["train/loss"])
