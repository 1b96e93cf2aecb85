"""The plan: rules over fingerprints; the user's values win; same facts, same file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines import plan
from pipelines.params import Params
from pipelines.params.planned import apply_plan, load_planned, open_keys
from pipelines.plan import task_of
from pipelines.planning.decide import decide
from pipelines.planning.facts import Decision
from pipelines.planning.file import write_plan
from pipelines.planning.rules import RULES
from pipelines.planning.starts import STARTS
from pipelines.planning.timing import measure_step
from pipelines.prepare import prepare
from pipelines.sources import create_dataset
from segcore.errors import OptionError
from segcore.machine import Machine, describe_machine
from segcore.models import model_card

ROOT = Path(__file__).parents[2]
CPU = Machine("cpu", "a processor", 2, 24.0, True, 0)


def fingerprint(**changes: Any) -> dict[str, Any]:
    """94 pictures of 320 x 480 with a thin class of 1.6 %."""
    classes = [
        {"name": "ground", "pixel_share": 0.984, "image_share": 1.0, "thickness_px": 90},
        {"name": "crack", "pixel_share": 0.016, "image_share": 1.0, "thickness_px": 3.1},
    ]
    found = {
        "images": {"train": 66, "val": 14, "test": 14, "unlabelled": 0},
        "sizes": {"distinct": 1, "min": [320, 480], "median": [320, 480], "max": [320, 480]},
        "oriented": 0.02,
        "classes": classes,
    }
    return {**found, **changes}


def params(**values: Any) -> Params:
    return Params.load(ROOT / "params.yaml").override(values)


def planned(
    values: dict[str, Any] | None = None,
    *,
    task: str = "semantic",
    step_s: float = 0.4,
    machine: Machine = CPU,
    **facts: Any,
) -> dict[str, Decision]:
    def timer(settings: Mapping[str, Any]) -> float:
        return step_s

    return decide(params(**(values or {})), fingerprint(**facts), machine, timer, task=task)


def value(key: str, *args: Any, **facts: Any) -> Any:
    return planned(*args, **facts)[key].value


def test_every_auto_of_params_yaml_has_a_rule_and_a_reason() -> None:
    decisions = planned()
    assert set(open_keys(params())) <= set(RULES) == set(decisions)
    assert all(entry.why and entry.sources for entry in decisions.values())
    whole = apply_plan(params(), {key: {"value": entry.value} for key, entry in decisions.items()})
    assert open_keys(whole) == []
    assert whole.train.augment.crop == (256, 256)


def test_what_the_user_sets_wins_and_is_marked() -> None:
    decisions = planned({"train.lr": 0.02, "model.name": "enet"})
    assert decisions["train.lr"] == Decision(0.02, "set in params.yaml", ("you",))
    assert decisions["model.options.backbone"].value is None, "options follow the planned model"


def test_pictures_of_unlike_sizes_are_cropped_and_small_ones_are_whole() -> None:
    mixed = {"distinct": 9, "min": [256, 256], "median": [256, 320], "max": [1024, 1388]}
    assert value("train.augment.crop", sizes=mixed) == [256, 256]
    small = {"distinct": 1, "min": [128, 192], "median": [128, 192], "max": [128, 192]}
    assert value("train.augment.crop", sizes=small) is None
    narrow = {"distinct": 2, "min": [50, 900], "median": [50, 900], "max": [60, 1000]}
    assert value("train.augment.crop", sizes=narrow) == [64, 256]


def test_memory_bounds_the_batch() -> None:
    assert value("train.batch_size") == 8
    assert value("train.batch_size", machine=Machine("cpu", "small", 2, 2.0, True, 0)) == 3


def test_precision_follows_the_machine() -> None:
    assert value("train.precision") == "bf16"
    assert value("train.precision", machine=Machine("cpu", "old", 2, 24.0, False, 0)) == "fp32"


def test_classes_that_chance_shows_too_seldom_are_cropped() -> None:
    shares = {"name": "wreck", "pixel_share": 0.001, "thickness_px": 40}
    seldom, common = [{**shares, "image_share": share} for share in (0.1, 0.9)]
    assert value("train.augment.class_crops", classes=[seldom]) > 0
    assert value("train.augment.class_crops", classes=[common]) == 0, "nine views of ten have it"
    wide = {"distinct": 1, "min": [3000, 4000], "median": [3000, 4000], "max": [3000, 4000]}
    assert value("train.augment.class_crops", classes=[common], sizes=wide) > 0


def test_a_rare_class_among_many_is_weighed() -> None:
    shares = {"road": 0.6, "tree": 0.39, "pole": 0.01}
    many = [
        {"name": n, "pixel_share": s, "image_share": 1.0, "thickness_px": 9}
        for n, s in shares.items()
    ]
    assert value("loss.class_weights", classes=many) == "sqrt_inverse_log"
    assert value("loss.class_weights") == "none", "two classes: Dice is enough"
    assert value("loss.class_weights", {"loss.name": "focal"}, classes=many) == "none"
    assert value("loss.class_weights", classes=many, task="instance") == "none"


def test_thin_things_are_not_resampled() -> None:
    assert value("train.augment.scale") == [1.0, 1.0]
    thick = [{"name": "cell", "pixel_share": 0.2, "image_share": 1.0, "thickness_px": 20}]
    assert value("train.augment.scale", classes=thick) == [0.8, 1.25]


def test_pictures_that_come_very_often_are_resampled_whatever_is_thin() -> None:
    assert value("train.augment.scale", {"train.epochs": 4000}) == [0.75, 1.5]


def test_pictures_that_come_seldom_are_not_changed() -> None:
    thick = [{"name": "cell", "pixel_share": 0.2, "image_share": 1.0, "thickness_px": 20}]
    assert value("train.augment.color", classes=thick) == 0.2
    many = {"train": 900, "val": 90, "test": 90}
    for key, nothing in (("color", 0.0), ("scale", [1.0, 1.0])):
        assert value(f"train.augment.{key}", images=many, classes=thick) == nothing
        counted = {"train.epochs": 200}
        assert value(f"train.augment.{key}", counted, images=many, classes=thick) != nothing


def test_few_steps_learn_nothing_by_heart() -> None:
    thick = [{"name": "cell", "pixel_share": 0.2, "image_share": 1.0, "thickness_px": 20}]
    for minutes, colors in ((2.0, 0.0), (5.0, 0.2)):
        given = {"train.budget_minutes": minutes}
        assert value("train.augment.color", given, classes=thick, step_s=0.4) == colors


def test_pictures_with_an_up_are_not_turned_over() -> None:
    assert value("train.augment.vflip", oriented=0.5) == 0
    assert value("train.augment.vflip", oriented=0.01) == 0.5


def test_few_pictures_are_all_trained_on_if_a_test_split_judges() -> None:
    assert value("train.refit") is True
    many = {"train": 900, "val": 180, "test": 90}
    assert value("train.refit", images=many) is False
    unjudged = planned(images={"train": 40, "val": 8, "test": 0})["train.refit"]
    assert (unjudged.value, unjudged.why) == (False, "there is no test split: validation judges")
    assert value("train.refit", images={"train": 40, "val": 0, "test": 9}) is False


def test_the_budget_is_kept_and_data_seen_often_enough_need_less() -> None:
    decisions = planned({"train.progressive": 0.0}, step_s=0.8)
    assert decisions["train.budget_minutes"].value == 8
    assert decisions["train.max_minutes"].value == 8
    assert decisions["train.epochs"].value * decisions["train.epoch_steps"].value * 0.8 == (
        pytest.approx(480, rel=0.2)
    )
    assert value("train.budget_minutes", step_s=0.1) == pytest.approx(6_000 * 0.1 / 8 / 60, 0.1)
    assert value("train.max_minutes", {"train.budget_minutes": 20.0}) == 20


def test_half_of_the_time_is_at_half_size_where_a_class_is_rare() -> None:
    decisions, whole = planned(), planned({"train.progressive": 0.0})
    assert decisions["train.progressive"].value == 0.5
    assert "128 x 128" in decisions["train.progressive"].why
    steps = [
        one["train.epochs"].value * one["train.epoch_steps"].value for one in (decisions, whole)
    ]
    assert steps[0] / steps[1] == pytest.approx(0.5 + 0.5 * 3.2, rel=0.1)
    even = [
        {"name": name, "pixel_share": share, "image_share": 1.0, "thickness_px": 9}
        for name, share in (("membrane", 0.24), ("cell", 0.76))
    ]
    assert value("train.progressive", classes=even) == 0
    small = {"distinct": 1, "min": [96, 120], "median": [96, 120], "max": [96, 120]}
    assert value("train.progressive", sizes=small) == 0
    assert value("train.progressive", {"train.epochs": 40}) == 0
    assert value("train.progressive", task="instance") == 0
    assert value("train.progressive", task="semi_supervised") == 0


def test_epochs_that_the_user_counts_take_the_clock_away() -> None:
    decisions = planned({"train.epochs": 40})
    assert decisions["train.max_minutes"].value is None
    assert decisions["train.epoch_steps"].value is None


def test_validation_takes_a_small_share_of_the_time() -> None:
    images = {"train": 800, "val": 300, "test": 90}
    sizes = {"distinct": 1, "min": [512, 512], "median": [512, 512], "max": [512, 512]}
    given = {"train.budget_minutes": 8.0, "train.progressive": 0.0}
    steps = value("train.epoch_steps", given, images=images, sizes=sizes)
    assert steps == 600, "two validations in 1200 steps"


def test_search_only_where_it_fits() -> None:
    images = {"train": 1400, "val": 40, "test": 90}
    assert value("tune.trials", images=images) == 0
    assert value("tune.trials", {"train.budget_minutes": 60.0, "train.epoch_steps": 50}) == 3


@pytest.mark.parametrize("task", sorted(STARTS))
def test_every_kind_of_task_has_a_start_that_can_be_timed(task: str) -> None:
    start = STARTS[task]
    assert model_card(start.model).task == task
    decisions = planned(task=task)
    assert decisions["model.name"].value == start.model
    options = {name: value for name, (value, _) in start.options.items()}
    what = {
        "model.name": start.model,
        "train.batch_size": 1,
        "train.precision": "fp32",
        "size": [96, 64],
        "channels": 3,
        "task": task,
        "classes": ["ground", "car", "tree"],
        "things": [False, True, True],
        "machine": CPU.to_json(),
    }
    assert measure_step(what, options) > 0


def test_options_that_params_do_not_list_come_with_the_planned_architecture() -> None:
    objects = {"instances": {"per_image": {"median": 26, "p95": 135, "max": 369}}}
    decisions = planned(task="instance", **objects)
    assert decisions["model.options.box_detections_per_img"].value == 500
    entries = {key: {"value": entry.value} for key, entry in decisions.items()}
    assert apply_plan(params(), entries).model.options["fpn_channels"] == 128
    given = {"model.options.fpn_channels": 64}
    decisions = planned(given, task="instance", **objects)
    entries = {key: {"value": entry.value} for key, entry in decisions.items()}
    assert apply_plan(params(**given), entries).model.options["fpn_channels"] == 64
    assert "model.options.fpn_channels" not in planned({"model.name": "enet"}, **objects)


def test_the_kind_of_task_follows_what_is_set_then_the_model_then_the_labels() -> None:
    tasks = ("semantic", "instance")
    assert task_of(params(), tasks) == "semantic"
    assert task_of(params(**{"data.task": "instance"}), tasks) == "instance"
    assert task_of(params(**{"model.name": "mask_rcnn"}), tasks) == "instance"
    assert task_of(params(**{"data.task": "semi_supervised"}), tasks) == "semi_supervised"
    with pytest.raises(OptionError, match=r"data\.task is panoptic, and streets has labels for"):
        task_of(params(**{"data.task": "panoptic"}), tasks)
    with pytest.raises(OptionError, match=r"data\.task is instance, and model\.name unet is for"):
        task_of(params(**{"data.task": "instance", "model.name": "unet"}), tasks)


def test_auto_without_a_rule_is_refused() -> None:
    with pytest.raises(OptionError, match=r"train\.seed is auto, but no rule decides it"):
        planned({"train.seed": "auto"})


def test_the_file_changes_only_with_a_decision(tmp_path: Path) -> None:
    about = {"name": "painted", "digest": "0"}
    file = tmp_path / "plan.yaml"
    assert write_plan(file, planned(), dataset=about, machine=CPU)
    before = file.stat().st_mtime_ns
    assert not write_plan(file, planned(), dataset=about, machine=CPU)
    assert file.stat().st_mtime_ns == before
    assert write_plan(file, planned({"train.lr": 0.1}), dataset=about, machine=CPU)
    line = next(line for line in file.read_text().splitlines() if "augment.crop" in line)
    assert line.startswith("  train.augment.crop: {value: [256, 256], why: ")
    assert line.endswith("from: [sizes]}")


def test_later_stages_read_the_plan(project: Params, tmp_path: Path) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(project.dump()))
    with pytest.raises(OptionError, match=r"outputs/plan\.yaml is missing.*pipelines\.plan"):
        load_planned()
    about = {"name": "painted", "digest": "0"}
    write_plan(tmp_path / "outputs/plan.yaml", planned(), dataset=about, machine=CPU)
    assert load_planned().train.batch_size == 8
    Path("params.yaml").write_text(yaml.safe_dump(project.override({"train.lr": 0.5}).dump()))
    assert load_planned().train.lr == 0.5


def test_a_folder_with_nothing_to_judge_by_is_told_before_training(
    project: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "train_only"
    for part in ("train/images", "train/masks"):
        (folder / part).mkdir(parents=True)
    for number in range(4):
        pixels = np.full((32, 48), 60, np.uint8)
        pixels[8:20, number : 20 + number] = 200
        Image.fromarray(pixels).save(folder / f"train/images/{number}.png")
        Image.fromarray((pixels > 100).astype(np.uint8)).save(folder / f"train/masks/{number}.png")
    values = {"data.name": "folder", "data.path": str(folder), "model.name": "fcn_small"}
    asked = project.override(values)
    Path("params.yaml").write_text(yaml.safe_dump(asked.dump()))
    create_dataset(asked).download()
    prepare(asked)
    capsys.readouterr()
    plan.main()
    assert "no test and no val images: the stage evaluate will have" in capsys.readouterr().out


def test_a_range_around_the_plan() -> None:
    decisions = {key: {"value": entry.value} for key, entry in planned().items()}
    space = apply_plan(params(), decisions).search_space()
    assert space["train.lr"].ends() == pytest.approx([0.001 / 3, 0.003])
    wrong = {"train.precision": {"kind": "around", "factor": 2.0}}
    settled = apply_plan(params(**{"tune.space": wrong}), decisions)
    with pytest.raises(OptionError, match=r"train\.precision is around its value, which is 'bf16'"):
        settled.search_space()


def test_this_machine_is_described() -> None:
    machine = describe_machine()
    assert machine.cores >= 1
    assert machine.memory_gib > 0.5
    assert machine.to_json()["device"] in ("cpu", "cuda")
