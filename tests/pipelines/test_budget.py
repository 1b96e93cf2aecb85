"""`segcore budget`: what more masks would bring, by a curve through models on shares of them."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import segcore
from pipelines.budget import ALONE, WITH_REST, settings_of
from pipelines.cli import app
from pipelines.evaluation import saturation
from pipelines.evaluation.budget_page import Point, answer_of
from pipelines.params import Params
from pipelines.prepare import prepare
from pipelines.scoring.bootstrap import resampled
from segcore.errors import OptionError
from tests.pipelines.small_recipe import RECIPE

LABELS = np.array([16.0, 32.0, 80.0, 160.0, 320.0])


@settings(max_examples=30, deadline=None)
@given(st.floats(0.3, 0.95), st.floats(0.2, 2.0), st.sampled_from(saturation.RATES[4:60].tolist()))
def test_a_power_law_is_found_again(limit: float, loss: float, rate: float) -> None:
    truth = limit - loss * LABELS**-rate
    curve = saturation.fit(LABELS, truth[None])
    np.testing.assert_allclose(curve.at(LABELS)[0], truth, atol=1e-9)
    np.testing.assert_allclose(curve.at(np.array([640.0]))[0], limit - loss * 640.0**-rate)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_curves_rise_and_stay_below_the_most_that_can_be(seed: int) -> None:
    figures = np.random.default_rng(seed).uniform(0, 1, (4, len(LABELS)))
    curves = saturation.fit(LABELS, figures)
    assert (curves.loss >= 0).all()
    assert (curves.limit <= saturation.MOST + 1e-9).all()
    assert (np.diff(curves.at(np.geomspace(1, 1e5, 50)), axis=1) >= -1e-9).all()


def test_figures_that_do_not_rise_promise_nothing() -> None:
    flat = np.full((1, len(LABELS)), 0.6)
    curve = saturation.fit(LABELS, flat)
    np.testing.assert_allclose(curve.at(np.array([1000.0])), 0.6)
    falling = saturation.fit(LABELS, np.linspace(0.7, 0.5, 5)[None])
    np.testing.assert_allclose(falling.at(np.array([1000.0])), 0.6)


def test_two_numbers_of_labels_make_no_curve() -> None:
    with pytest.raises(OptionError, match="points at 2 numbers of labels"):
        saturation.fit(np.array([8.0, 16.0]), np.array([[0.4, 0.5]]))


def point(labels: int, figure: float, *, method: str = ALONE, width: float = 0.01) -> Point:
    drawn = figure + width * np.random.default_rng(0).normal(size=400)
    return Point(labels / 320, labels, method, figure, drawn)


def test_the_answer_holds_the_truth_and_says_when_it_cannot_tell(project: Params) -> None:
    rule = project.evaluate.promote
    points = [point(int(n), 0.8 - 1.2 * n**-0.5) for n in LABELS]
    (line,) = answer_of(points, more=50, name="mIoU", rule=rule).lines
    truth = 1.2 * (320**-0.5 - 370**-0.5)
    assert line.gain is not None
    assert line.gain.labels == 320
    assert line.gain.value == pytest.approx(truth, abs=1e-6)
    assert 0 < line.gain.low <= truth <= line.gain.high
    rough = [point(int(n), y) for n, y in zip(LABELS, (0.6, 0.5, 0.62, 0.5, 0.57), strict=True)]
    answer = answer_of(rough, more=50, name="mIoU", rule=rule)
    assert "these points cannot tell" in answer.sentences()[0]
    assert answer_of(points[:3], more=50, name="mIoU", rule=rule).sentences() == []


def test_points_far_from_their_curve_widen_the_answer(project: Params) -> None:
    widths = []
    for noise in (0.0, 0.02):
        figures = 0.8 - 1.2 * LABELS**-0.5 + noise * np.array([1, -1, 1, -1, 1])
        points = [point(int(n), y, width=0.002) for n, y in zip(LABELS, figures, strict=True)]
        answer = answer_of(points, more=50, name="mIoU", rule=project.evaluate.promote)
        gain = answer.lines[0].gain
        assert gain is not None
        widths.append(gain.high - gain.low)
    assert widths[1] > 2 * widths[0]


def test_resamples_are_the_same_for_every_model() -> None:
    scores = np.arange(12.0)
    one = resampled(lambda w: w @ scores, images=12, resamples=300, seed=3)
    other = resampled(lambda w: w @ (scores + 5), images=12, resamples=300, seed=3)
    np.testing.assert_allclose(other - one, 12 * 5)


def test_what_is_trained(project: Params) -> None:
    found = settings_of(project, [1.0, 0.1, 0.1], with_rest=True)
    assert [(one.fraction, one.method) for one in found] == [
        (0.1, ALONE), (0.1, WITH_REST), (1.0, ALONE),
    ]  # fmt: skip
    with pytest.raises(OptionError, match=r"fractions are \[0.5, 1.5\]"):
        settings_of(project, [0.5, 1.5], with_rest=False)
    hidden = project.override({"data.labelled_fraction": 0.5})
    with pytest.raises(OptionError, match=r"data.labelled_fraction is 0.5"):
        settings_of(hidden, [0.5], with_rest=False)


@pytest.fixture
def painted_folder(
    project: Params, painted_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> Params:
    """The painted pictures as a folder of one's own, prepared."""
    monkeypatch.delenv("SEGCORE_ROOT", raising=False)
    painted = segcore.open_shards(painted_shards)
    for part in ("images", "masks"):
        Path("own", part).mkdir(parents=True)
    for split in (painted.split("train"), painted.split("test")):
        for number, name in enumerate(split.ids):
            image, mask = split.decode(number)
            Image.fromarray(np.array(image)).save(f"own/images/{name}.png")
            Image.fromarray(np.array(mask)).save(f"own/masks/{name}.png")
    values: dict[str, Any] = {
        **RECIPE, "data.name": "folder", "data.path": "own", "data.classes": list(painted.classes),
        "train.epoch_steps": 6, "data.val_fraction": 0.1, "data.test_fraction": 0.2,
    }  # fmt: skip
    params = project.override(values)
    Path("params.yaml").write_text(yaml.safe_dump(params.dump()))
    Path("data/raw/folder").mkdir(parents=True)
    prepare(params)
    return params


def test_points_are_trained_once_and_drawn(painted_folder: Params) -> None:
    arguments = ["budget", "--fractions", "0.2,0.4,0.7,1", "--no-rest", "--more", "10"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    with Path("outputs/budget/points.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["labels"]) for row in rows] == sorted({int(row["labels"]) for row in rows})
    assert len(rows) == 4
    for row in rows:
        assert float(row["low"]) <= float(row["figure"]) <= float(row["high"])
    assert "10 more masks" in result.output
    assert Image.open("outputs/budget/curve.png").width > 500
    more = CliRunner().invoke(app, ["budget", "--fractions", "0.4,1", "--more", "10"])
    assert more.exit_code == 0, more.output
    assert more.output.count("trained before") == 2
    assert WITH_REST in Path("outputs/budget/points.csv").read_text()
    wrong = CliRunner().invoke(app, ["budget", "--fractions", "half"])
    assert (wrong.exit_code, "--fractions is 'half'" in wrong.output) == (1, True)
