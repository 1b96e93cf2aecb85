"""The semantic task: normalisation, loss terms, figures, and the check of target ids."""

import math

import pytest
import torch
from torch import Tensor, nn

from segcore.errors import DataError, OptionError, ShapeError, UnknownNameError
from segcore.models import create_model
from segcore.tasks import TASKS, create_task, list_tasks
from segcore.tasks.semantic import SemanticTask


def task(**options: object) -> SemanticTask:
    facts = {"num_classes": 3, "mean": [0.5, 0.4], "std": [0.25, 0.2], **options}
    built = create_task("semantic", **facts)
    assert isinstance(built, SemanticTask)
    return built


class Fixed(nn.Module):
    """Returns what it was given."""

    def __init__(self, outputs: dict[str, Tensor] | Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> dict[str, Tensor] | Tensor:
        return self.outputs


def batch(target: Tensor) -> dict[str, object]:
    image = torch.zeros(len(target), 2, *target.shape[1:], dtype=torch.uint8)
    return {"image": image, "target": target, "id": [f"img{i}" for i in range(len(target))]}


def test_registry_names_resolve_and_unknown_ones_are_told() -> None:
    assert list_tasks() == sorted(TASKS)
    with pytest.raises(UnknownNameError, match="did you mean 'semantic'"):
        create_task("semantics")


def test_normalise_uint8_and_float_agree() -> None:
    image = torch.randint(0, 256, (2, 2, 4, 5), dtype=torch.uint8)
    expected = (image.double() / 255 - torch.tensor([0.5, 0.4]).view(1, 2, 1, 1)) / torch.tensor(
        [0.25, 0.2]
    ).view(1, 2, 1, 1)
    assert torch.allclose(task().normalise(image).double(), expected, atol=1e-5)
    assert torch.allclose(task().normalise(image.float() / 255).double(), expected, atol=1e-5)
    with pytest.raises(ShapeError, match=r"\(2, 3, 4, 5\), expected \[N, 2, H, W\]"):
        task().normalise(torch.zeros(2, 3, 4, 5))


def test_loss_terms_weigh_auxiliary_outputs() -> None:
    target = torch.tensor([[[0, 1, 255]]])
    logits = torch.zeros(1, 3, 1, 3)
    model = Fixed({"out": logits, "aux": logits, "aux_deep": logits, "features": logits})
    terms = task().training_step(model, batch(target))
    assert set(terms) == {"cross_entropy", "aux", "aux_deep"}
    assert float(terms["cross_entropy"]) == pytest.approx(math.log(3))
    assert float(terms["aux"]) == pytest.approx(0.4 * math.log(3))
    assert set(task().training_step(Fixed(logits), batch(target))) == {"cross_entropy"}


def test_metric_has_figures_per_class_and_the_mean_loss() -> None:
    built = task(classes=("sky", "road", "car"))
    metric = built.new_metric()
    target = torch.tensor([[[0, 1, 1, 255]]])
    logits = torch.nn.functional.one_hot(torch.tensor([[[0, 1, 0, 2]]]), 3) * 10.0
    metric.update(built.predict(Fixed(logits.movedim(3, 1)), batch(target)), target)
    figures = metric.compute()
    assert figures["iou/sky"] == pytest.approx(0.5)
    assert figures["iou/road"] == pytest.approx(0.5)
    assert math.isnan(figures["iou/car"])
    assert figures["miou"] == pytest.approx(0.5)
    assert figures["pixel_accuracy"] == pytest.approx(2 / 3)
    assert figures["loss"] == pytest.approx(10 / 3, rel=1e-3)


def test_merged_metrics_equal_one_over_all_images() -> None:
    built = task()
    target = torch.randint(0, 3, (6, 8, 8))
    logits = torch.randn(6, 3, 8, 8)
    whole, first, second = (built.new_metric() for _ in range(3))
    whole.update(logits, target)
    first.update(logits[:2], target[:2])
    second.update(logits[2:], target[2:])
    first.merge([first.state(), second.state()])
    assert first.compute() == pytest.approx(whole.compute(), rel=1e-5)


def test_empty_metric_is_not_defined() -> None:
    figures = task().new_metric().compute()
    assert all(math.isnan(value) for value in figures.values())


@pytest.mark.parametrize("num_classes", [1, 3])
def test_target_ids_out_of_range_name_the_sample(num_classes: int) -> None:
    built = task(num_classes=num_classes)
    target = torch.zeros(3, 4, 4, dtype=torch.int64)
    target[0, 0, 0] = 255
    target[2, 1, 1] = 1
    built.check(batch(target))
    target[1, 2, 2] = 7
    target[1, 3, 3] = -1
    with pytest.raises(DataError, match=r"target of img1 has class id -1, 7, .*ignore_index"):
        built.check(batch(target))


def test_class_weights_follow_the_dataset() -> None:
    counts = {"pixels": [70, 20, 10], "image_pixels": [100, 100, 100], "total": 100}
    built = task(class_weights="median_frequency", pixel_counts=counts)
    target = torch.tensor([[[0, 2]]])
    logits = torch.zeros(1, 3, 1, 2)
    plain = task().training_step(Fixed(logits), batch(target))["cross_entropy"]
    weighted = built.training_step(Fixed(logits), batch(target))["cross_entropy"]
    assert torch.isfinite(weighted)
    assert built.loss.class_weights.tolist() == pytest.approx([2 / 7, 1, 2])
    assert float(plain) == pytest.approx(math.log(3))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"class_weights": "inverse_log"}, "give pixel_counts"),
        ({"classes": ("a", "b")}, "2 names for 3 classes"),
        ({"std": [0.0, 1.0]}, "std > 0"),
        ({"options": {"gama": 2}}, "no option gama"),
        ({"ignore": 3}, "no option ignore"),
    ],
)
def test_wrong_options_are_told(options: dict[str, object], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        task(**options)


def test_missing_fact_is_told() -> None:
    with pytest.raises(OptionError, match="lacks mean"):
        create_task("semantic", num_classes=3, std=[1.0])


def test_a_model_may_weigh_its_own_auxiliary_outputs() -> None:
    torch.manual_seed(0)
    model = create_model("gfrnet", num_classes=3)
    task = create_task("semantic", num_classes=3, ignore_index=255, mean=(0.5,) * 3, std=(0.5,) * 3)
    batch = {
        "image": torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8),
        "target": torch.randint(0, 3, (2, 64, 64)),
    }
    torch.manual_seed(1)
    own = task.training_step(model, batch)
    task.aux_weight = 0.25
    torch.manual_seed(1)
    given = task.training_step(model, batch)
    assert len([name for name in own if name.startswith("aux")]) == 5
    torch.testing.assert_close(given["aux1"], 0.25 * own["aux1"])
