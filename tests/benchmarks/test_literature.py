"""The literature's table: a card for every system, rows that were run, sittings that go on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import segcore
from benchmarks.literature import table
from benchmarks.literature.__main__ import main
from benchmarks.literature.recipes import (
    PLAIN,
    RECIPES,
    begins_pretrained,
    flat_names,
    published,
    recipe_of,
)
from benchmarks.literature.rows import Setting, interval, measure
from segcore.data.prepare import prepare
from segcore.data.transforms import Augmentation
from segcore.datasets import DataSource, create_dataset
from segcore.engine.optim import OPTIMIZERS, SCHEDULES
from segcore.losses import create_loss
from segcore.losses.class_weights import KINDS
from segcore.models import model_card


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streets")
    options = {"num_train": 6, "num_val": 1, "num_test": 3, "height": 48, "width": 64}
    source = create_dataset("streets", DataSource(raw=folder / "raw", options=options))
    source.download()
    prepare(source, folder / "shards", workers=1)
    return folder / "shards"


def test_what_was_published_on_camvid_has_a_card() -> None:
    assert set(RECIPES) <= set(flat_names())
    reported = [n for n in flat_names() if any("camvid" in key for key in model_card(n).published)]
    assert set(reported) <= set(RECIPES)
    assert recipe_of("conv_stack") is PLAIN


@pytest.mark.parametrize("name", flat_names())
def test_a_card_is_what_training_takes(name: str) -> None:
    recipe = recipe_of(name)
    assert recipe.source
    assert recipe.optimizer in OPTIMIZERS
    assert recipe.schedule in SCHEDULES
    assert recipe.class_weights in KINDS
    assert recipe.lr > 0
    create_loss(recipe.loss, num_classes=11, **recipe.loss_options)
    for size in ((120, 160), (360, 480)):
        options = recipe.augmentation(size)
        found = Augmentation.from_options(options, ignore_index=11, mean=(0.5, 0.5, 0.5))
        height, width = found.crop or size
        assert 32 <= height <= size[0]
        assert 32 <= width <= size[1]


def test_systems_begin_from_imagenet_as_published_where_they_can() -> None:
    begun = {name for name in RECIPES if begins_pretrained(name, True)}
    assert {"fcn8s", "linknet", "pspnet", "refinenet", "segnet"} <= begun
    assert not begun & {"deconvnet", "enet", "unet"}  # cannot, or were not published so
    assert not any(begins_pretrained(name, False) for name in RECIPES)


def test_published_figures_are_those_of_the_dataset() -> None:
    enet = published(model_card("enet"), RECIPES["enet"], "camvid")
    assert enet == {"miou": 51.3, "class_accuracy": 68.3}
    assert published(model_card("enet"), RECIPES["enet"], "streets") == {}
    dense = published(model_card("fc_densenet103"), RECIPES["fc_densenet103"], "camvid")
    assert dense == {"miou": 66.9, "pixel_accuracy": 91.5}


def test_crops_keep_their_share_of_the_picture() -> None:
    assert RECIPES["fc_densenet56"].augmentation((360, 480))["crop"] == [224, 224]
    assert RECIPES["fc_densenet56"].augmentation((120, 160))["crop"] == [75, 75]


def test_a_change_of_training_is_another_recipe_and_one_of_words_is_not() -> None:
    recipe = RECIPES["enet"]
    assert replace(recipe, caveat="other words").digest() == recipe.digest()
    assert replace(recipe, lr=2 * recipe.lr).digest() != recipe.digest()


def test_the_interval_is_that_of_the_images() -> None:
    alike = np.tile(np.array([[6, 2], [1, 3]]), (5, 1, 1))
    low, high = interval(alike, 5, seed=0)
    assert low == pytest.approx(high)
    assert low == pytest.approx((6 / 9 + 3 / 6) / 2)
    mixed = np.concatenate([alike, np.tile(np.array([[9, 0], [0, 3]]), (5, 1, 1))])
    low, high = interval(mixed, 10, seed=0)
    assert low < (75 / 90 + 30 / 45) / 2 < high  # of the sum, [[75, 10], [5, 30]]


def test_a_row_says_what_was_run(shards: Path) -> None:
    setting = Setting(shards=shards, minutes=1e-9, max_batch=2)
    row = measure("linknet", setting)
    assert (row["steps"], row["batch"], row["images"]) == (1, 2, 3)
    assert row["low"] <= row["high"]
    assert 0 <= row["miou"] <= row["pixel_accuracy"] <= 100
    line = table.render([row]).splitlines()[-1]
    assert "LinkNet" in line
    assert "published from ResNet-18 of ImageNet; batch 2 for 8" in line
    assert f"| **{row['miou']:.1f}** |" in line


def test_a_row_that_failed_has_no_figures() -> None:
    row = {
        "system": "enet", "dataset": "camvid", "error": "out | of memory", "minutes": 6.0,
        "seed": 0, "clock": "cpu", "precision": "fp32", "channels_last": False, "compile": False,
        "device": "cpu", "height": 120, "width": 160, "pretrained": False, "recipe": "0",
    }  # fmt: skip
    line = table.render([row]).splitlines()[-1]
    assert "not measured: out / of memory |  |  |  |" in line
    assert "**" not in line
    assert line.endswith("120 x 160; by an earlier recipe, 0 |")


def test_a_sitting_goes_on_where_another_ended(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--shards", str(shards), "--minutes", "0.001", "--out", str(tmp_path)]
    assert main([*given, "--only", "fcn_small"]) == 0
    file = tmp_path / f"literature-{segcore.open_shards(shards).name}.json"
    first = json.loads(file.read_text())
    assert [row["system"] for row in first] == ["fcn_small"]
    assert first[0]["steps"] >= 1
    assert "Compact FCN" in file.with_suffix(".md").read_text()
    capsys.readouterr()
    assert main([*given, "--only", "fcn_small"]) == 0
    assert capsys.readouterr().out == "fcn_small: there already\n"
    assert json.loads(file.read_text()) == first


def test_a_row_that_failed_is_tried_again(shards: Path, tmp_path: Path) -> None:
    given = ["--shards", str(shards), "--minutes", "0.001", "--out", str(tmp_path)]
    assert main([*given, "--only", "enet", "--timeout", "0.01"]) == 1
    file = tmp_path / f"literature-{segcore.open_shards(shards).name}.json"
    (row,) = json.loads(file.read_text())
    assert row["error"] == "not done after 0.01 s"
    assert "miou" not in row
    assert main([*given, "--only", "enet", "--timeout", "0.02"]) == 1
    assert len(json.loads(file.read_text())) == 1
