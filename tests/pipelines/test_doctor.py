"""`segcore doctor`: labels that are wrong are found, by models that were not trained on them."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import ndimage
from typer.testing import CliRunner

import segcore
from benchmarks.planted_faults import SORTS, find_objects, plant, plant_into
from pipelines.aside import share_minutes
from pipelines.cli import app
from pipelines.doctor import doctor
from pipelines.evaluation.suspects import Suspect, rank, read_summary
from pipelines.params import Params
from pipelines.prepare import prepare
from pipelines.sources import create_dataset
from segcore.data.codec import encode_mask
from segcore.data.shards import write_shards
from segcore.errors import OptionError
from segcore.inference.contradictions import calibrate, judge
from tests.pipelines.small_recipe import RECIPE

REPOSITORY = Path(__file__).parents[2]
DISK, SQUARE = 1, 2
SHARDS = Path("data/shards/painted")
FAULTY = (3, 11)
FIRST, FOUND = 60, 30


def faulty(shards: Path, target: Path) -> Path:
    """A copy of the painted shards in which two training masks have disk and square exchanged."""
    dataset = segcore.open_shards(shards)
    train, test = dataset.split("train"), dataset.split("test")
    rows = [train.read(index) for index in range(len(train))]
    for index in FAULTY:
        mask = np.array(train.decode(index)[1])
        exchanged = np.where(mask == DISK, SQUARE, np.where(mask == SQUARE, DISK, mask))
        rows[index] = replace(rows[index], mask=encode_mask(exchanged.astype(np.uint8)))
    splits = {"train": rows, "test": [test.read(index) for index in range(len(test))]}
    write_shards(target, dataset.meta, splits=splits, encode=lambda row: row)
    return target


@pytest.fixture
def params(project: Params, painted_shards: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A project whose training labels have two faults."""
    monkeypatch.delenv("SEGCORE_ROOT", raising=False)
    faulty(painted_shards, SHARDS.absolute())
    Path("params.yaml").write_text(yaml.safe_dump(project.override(RECIPE).dump()))
    return Params.load()


def test_wrong_labels_come_first_and_the_page_shows_them(params: Params) -> None:
    result = CliRunner().invoke(app, ["doctor", "--folds", "2", "--pictures", "4"])
    assert result.exit_code == 0, result.output
    names = {f"train_{index:03d}" for index in FAULTY}
    with Path("outputs/doctor/suspects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows if int(row["place"]) <= 2} == names
    first = rows[0]
    assert {first["label"], first["predicted"]} == {"disk", "square"}
    assert float(first["confidence"]) > 0.5 > float(first["doubt"])
    page = Path("outputs/doctor/index.html").read_text()
    assert page.count("<img ") == 4
    assert all(name in page and name in result.output for name in names)
    dataset = segcore.open_shards(SHARDS)
    summary = read_summary(Path("outputs/doctor"), dataset)
    assert summary is not None
    assert {row["id"] for row in summary["top"][:2]} == names
    again = CliRunner().invoke(app, ["doctor", "--folds", "2", "--pictures", "0"])
    assert again.output.count("trained before") == 2
    assert "<img " not in Path("outputs/doctor/index.html").read_text()


def test_a_summary_of_other_shards_is_none(params: Params, painted_shards: Path) -> None:
    dataset = segcore.open_shards(SHARDS)
    folder = Path("found")
    folder.mkdir()
    assert read_summary(folder, dataset) is None
    (folder / "summary.json").write_text(json.dumps({"dataset": dataset.digest, "top": []}))
    assert read_summary(folder, dataset) == {"dataset": dataset.digest, "top": []}
    assert read_summary(folder, segcore.open_shards(painted_shards)) is None


def test_minutes_are_shared_and_wrong_ones_refused(params: Params) -> None:
    assert share_minutes(params, 4, 6.0).train.max_minutes == 1.5
    assert share_minutes(params, 4, None) == params
    timed = params.override({"train.max_minutes": 8.0})
    assert share_minutes(timed, 4, None).train.max_minutes == 2.0
    with pytest.raises(OptionError, match="minutes is 0"):
        share_minutes(params, 4, 0.0)


def test_more_parts_than_pictures_are_refused(params: Params) -> None:
    result = CliRunner().invoke(app, ["doctor", "--folds", "17"])
    assert result.exit_code == 1
    assert "folds is 17 for 16 training pictures" in result.output


def scene(seed: int) -> np.ndarray:
    """A mask [64, 96]: two bands, a block on the upper one, and disks of classes 3 and 4."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((64, 96), np.uint8)
    horizon = int(rng.integers(24, 40))
    mask[horizon:] = 1
    left = int(rng.integers(10, 50))
    mask[int(rng.integers(4, 16)) : horizon, left : left + int(rng.integers(16, 36))] = 2
    y, x = np.mgrid[:64, :96]
    for thing in (3, 4, 3):
        cy, cx, radius = rng.integers((16, 8, 5), (60, 88, 10))
        mask[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = thing
    return mask


def guess(mask: np.ndarray, seed: int) -> np.ndarray:
    """Probabilities of a model that sees a mask blurred, with errors in patches of some 8 px."""
    rng = np.random.default_rng([seed, 1])
    hot = (np.arange(5)[:, None, None] == mask).astype(float)
    seen = ndimage.gaussian_filter(hot, (0, 1.5, 1.5))
    noise = ndimage.gaussian_filter(rng.normal(size=hot.shape), (0, 4, 4))
    logits = 4 * seen + 1.2 * noise / noise.std()
    shares = np.exp(logits)
    return shares / shares.sum(0)


def test_planted_faults_come_before_the_errors_of_a_model() -> None:
    masks = [scene(seed) for seed in range(200)]
    labels, faults = plant(masks, [3, 4], each=10, seed=0)
    assert len(faults) == 40
    judgements = []
    for row, (mask, label) in enumerate(zip(masks, labels, strict=True)):
        shares = guess(mask, row)
        assert (shares.argmax(0) != mask).mean() > 0.02  # it errs in every picture
        judgements.append(judge(shares, label, ignore_index=255))
    found = [Suspect(row, f"p{row}", 0, one) for row, one in enumerate(calibrate(judgements))]
    first = {suspect.row for suspect in rank(found)[:FIRST]}
    hits = sum(bool(first & set(fault.rows)) for fault in faults)
    assert hits >= FOUND, hits


def test_faults_are_planted_where_they_are_said_to_be() -> None:
    masks = [scene(seed) for seed in range(60)]
    labels, faults = plant(masks, [3, 4], each=3, seed=1)
    rows = [row for fault in faults for row in fault.rows]
    assert len(rows) == len(set(rows)) == 15
    for row, (mask, label) in enumerate(zip(masks, labels, strict=True)):
        assert (mask != label).any() == (row in rows)
    assert all(find_objects(masks[fault.rows[0]], [3, 4]) for fault in faults[:6])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_most_faults_planted_in_streets_are_among_the_first_pictures(
    project: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 faults in 50 of 160 pictures; three models of 320 steps each."""
    monkeypatch.delenv("SEGCORE_ROOT", raising=False)
    sizes = {"num_train": 160, "num_val": 16, "num_test": 1, "height": 64, "width": 96}
    recipe: dict[str, Any] = {
        **RECIPE, "data.name": "streets", "data.options": sizes, "loss.name": "dice_ce",
        "model.options": {"base_channels": 12, "norm": "batch", "dropout": 0.0},
        "train.epochs": 4, "train.epoch_steps": 80, "train.lr": 0.002, "train.refit": False,
        "train.augment.crop": [64, 64], "train.augment.scale": [0.9, 1.2],
        "train.augment.color": 0.2,
    }  # fmt: skip
    params = project.override(recipe)
    Path("params.yaml").write_text(yaml.safe_dump(params.dump()))
    create_dataset(params).download()
    prepare(params)
    shards = Path("data/shards/streets").absolute()
    faults = plant_into(shards, each=10, seed=0)
    found, _ = doctor(folds=3, minutes=None, shown=FIRST)
    first = {suspect.row for suspect in found[:FIRST]}
    hits = dict.fromkeys(SORTS, 0)
    for fault in faults:
        hits[fault.what] += bool(first & set(fault.rows))
    print(hits)
    assert sum(hits.values()) >= FOUND, hits
