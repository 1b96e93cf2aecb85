"""The note on how the pictures of a job differ from those of the training set."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import segcore
from pipelines.params import Params
from pipelines.prediction import drift
from pipelines.prediction.intensity import channel_statistics
from pipelines.prediction.manifest import Row
from pipelines.prediction.run import predict
from pipelines.train import training_facts
from segcore.data.prepare import prepare
from segcore.datasets import create_dataset
from segcore.datasets.base import DataSource
from segcore.package import read_spec

TRAINING = {
    "class_shares": {"ground": 0.5, "disk": 0.25, "square": 0.25},
    "means": {"p1": [0.3] * 3, "p50": [0.4] * 3, "p99": [0.5] * 3},
    "stds": {"p1": [0.1] * 3, "p50": [0.2] * 3, "p99": [0.3] * 3},
}


def row(path: str, mean: float, std: float, **shares: float) -> Row:
    return Row(
        path, "ok", "", "", "",
        height=10, width=10, facts={"class_shares": sorted(shares.items())},
        channel_means=(mean, 0.4, 0.4), channel_stds=(0.2, std, 0.2),
    )  # fmt: skip


def test_figures_are_those_computed_by_hand(good_package: Path) -> None:
    spec = replace(read_spec(good_package), extra={"training": TRAINING})
    rows = [
        row("alike", 0.45, 0.25, ground=0.5, disk=0.5),
        row("edge", 0.51, 0.2, ground=0.5, disk=0.5),
        row("dark", 0.1, 0.2, ground=1.0),
        row("rich", 0.4, 0.4, ground=1.0),
    ]
    found = drift.compare(rows, spec)
    assert found is not None
    assert (found.pictures, found.far) == (4, 2)
    assert [one.path for one in found.farthest] == ["dark", "rich"]
    assert [one.distance for one in found.farthest] == pytest.approx([1.0, 0.5])
    assert found.farthest[0].why == "darker in channel 0: 0.100, training 0.300 to 0.500"
    assert found.farthest[1].why.startswith("richer in contrast in channel 1")
    assert found.class_shares["ground"] == pytest.approx([0.5, 0.75])
    assert found.class_shares["square"] == pytest.approx([0.25, 0.0])
    assert found.class_distance == pytest.approx(0.25)
    assert "2 of 4 pictures" in str(found)
    assert "\n" not in str(found)


def test_where_nothing_is_known_nothing_is_said(good_package: Path) -> None:
    spec = read_spec(good_package)
    assert drift.compare([row("a", 0.4, 0.2)], spec) is None
    assert drift.compare([], replace(spec, extra={"training": TRAINING})) is None
    objects = replace(row("a", 0.4, 0.2), facts={"objects": []})
    found = drift.compare([objects], replace(spec, extra={"training": TRAINING}))
    assert found is not None
    assert (found.class_distance, found.far) == (None, 0)
    assert "class shares" not in str(found)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (4, 6, 5)])
def test_statistics_are_exact(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    means, stds = channel_statistics(image)
    flat = image.reshape(-1, shape[2]) / 255
    assert means == pytest.approx(flat.mean(0))
    assert stds == pytest.approx(flat.std(0), abs=1e-9)


def test_training_pictures_are_alike_and_dark_ones_are_not(
    project: Params, good_package: Path, tmp_path: Path
) -> None:
    """From prepared shards by way of a package to the note."""
    for name in ("images/train", "masks/train", "dark"):
        (tmp_path / name).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(12):
        pixels = generator.integers(60 + index, 200, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/train/{index}.png")
        Image.fromarray(np.eye(24, 32, dtype=np.uint8)).save(tmp_path / f"masks/train/{index}.png")
        Image.fromarray(pixels // 4).save(tmp_path / f"dark/{index}.png")
    source = DataSource(raw=tmp_path / "raw", path=tmp_path, classes=("ground", "disk", "square"))
    dataset = create_dataset("folder", source)
    dataset.download()
    prepare(dataset, tmp_path / "shards", workers=1)
    shards = segcore.open_shards(tmp_path / "shards")
    facts = training_facts(shards)
    assert facts["training"]["class_shares"]["disk"] == pytest.approx(1 / 32, rel=0.01)
    middle = facts["training"]["means"]["p50"]
    assert middle == pytest.approx(list(shards.mean), abs=0.02)

    spec = replace(read_spec(good_package), extra=facts)
    model = segcore.load_package(good_package).model
    package = segcore.save_package(tmp_path / "package", model, spec)
    model_at = str(package)
    same = predict(project, images="images", model=model_at, out=Path("same"), overlays=False)
    dark = predict(project, images="dark", model=model_at, out=Path("out"), overlays=False)
    assert same.drift is not None
    assert same.drift.far == 0
    assert dark.drift is not None
    assert dark.drift.far == 12
    assert "darker" in str(dark)
    stored = json.loads(Path("out/drift.json").read_text())
    assert stored["far"] == 12
    assert len(stored["farthest"]) == 12
