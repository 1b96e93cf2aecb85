"""The evaluate stage on real shards, packages and a real MLflow store."""

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import segcore
from pipelines.evaluation.compare import evaluate
from pipelines.evaluation.report import Outcome
from pipelines.params import Params
from pipelines.scoring.records import record
from pipelines.tracking.registry import CHAMPION, Registry
from segcore.data.shards import open_shards, write_shards
from segcore.errors import DataError
from segcore.inference.predictor import Predictor
from segcore.metrics import scores
from segcore.tasks import get_kind

FILES = (
    "metrics.json",
    "per_class.csv",
    "confusion.csv",
    "confusion.png",
    "confusions.parquet",
    "index.html",
)


def run(params: Params, shards: Path, package: Path) -> Outcome:
    return evaluate(params, shards=shards, package=package, folder=Path("report"))


def test_confusions_ignore_void_and_sum_to_the_labelled_pixels(
    painted_shards: Path, good_package: Path
) -> None:
    predictor = segcore.load_package(good_package)
    dataset = open_shards(painted_shards)
    kind = get_kind("semantic")
    table = record(predictor, dataset, [0, 5, 7], kind=kind, batch_size=2)
    matrices = kind.records(table, dataset)
    assert matrices.shape == (3, 3, 3)
    assert matrices.sum((1, 2)).tolist() == [47 * 64] * 3
    image, mask = dataset.split("test").decode(5)
    assert mask is not None
    predicted = predictor(image)[0].mask
    assert matrices[1, 2, 2] == int(((mask == 2) & (predicted == 2)).sum())
    assert matrices[1, 0, 1] == int(((mask == 0) & (predicted == 1)).sum())


@pytest.mark.ray
def test_champion_moves_only_to_the_better_model(
    project: Params, painted_shards: Path, good_package: Path, bad_package: Path
) -> None:
    registry = Registry(project)
    first = run(project, painted_shards, bad_package)
    assert first.verdict == "promoted"
    assert registry.get("segcore-painted", CHAMPION) == first.candidate.version

    again = run(project, painted_shards, bad_package)
    assert again.verdict == "unchanged"
    assert again.candidate.version.version == first.candidate.version.version

    better = run(project, painted_shards, good_package)
    assert better.verdict == "promoted"
    assert better.comparison is not None
    assert better.comparison.low > 0
    assert better.candidate.figures["miou"] > 0.8
    assert registry.get("segcore-painted", CHAMPION) == better.candidate.version

    worse = run(project, painted_shards, bad_package)
    assert worse.verdict == "rejected"
    assert registry.get("segcore-painted", CHAMPION) == better.candidate.version
    tags = registry._client.get_model_version("segcore-painted", "1").tags
    scored = registry._client.get_run(tags["evaluate_run"])
    assert scored.info.run_name == "evaluate unet v1"
    assert scored.data.tags["dvc_stage"] == "evaluate"
    assert tags["decision"] == "rejected"
    assert float(tags["bootstrap_high"]) < 0
    assert float(tags["bootstrap_difference"]) == pytest.approx(
        worse.candidate.figures["miou"] - better.candidate.figures["miou"], abs=1e-5
    )
    moves = [move for move in registry.history("segcore-painted").moves() if move.alias == CHAMPION]
    assert [(move.previous, move.version) for move in moves] == [("", "1"), ("1", "2")]
    evidence = moves[1].evidence
    assert evidence.figures == {"miou": pytest.approx(better.candidate.figures["miou"])}
    assert evidence.interval == (better.comparison.low, better.comparison.high)
    assert evidence.champion == pytest.approx(first.candidate.figures["miou"])
    assert evidence.reason == better.reason
    assert registry._client.get_run(evidence.run_id).data.tags["dvc_stage"] == "evaluate"
    check_report(Path("report"), worse)


def check_report(folder: Path, outcome: Outcome) -> None:
    """Every file is there, agrees with the outcome, and the page needs nothing from outside."""
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == sorted(FILES)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["miou"] == pytest.approx(outcome.candidate.figures["miou"])
    assert set(metrics["iou"]) == {"ground", "disk", "square"}
    table = pq.read_table(folder / "confusions.parquet").to_pydict()
    assert table["model"].count("candidate") == table["model"].count("champion") == 12
    own = [c for c, m in zip(table["confusion"], table["model"], strict=True) if m == "candidate"]
    total = np.array(own).reshape(-1, 3, 3).sum(0)
    assert float(scores(total).miou) == pytest.approx(metrics["miou"])
    rows = list(csv.DictReader((folder / "confusion.csv").open()))
    assert 2990 <= len(rows) <= 3010
    page = (folder / "index.html").read_text()
    assert "rejected" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    kinds = {path.name.split("-")[0] for path in (folder / "overlays").iterdir()}
    assert kinds == {"best", "median", "worst"}


@pytest.mark.ray
def test_champion_is_not_run_again_on_the_same_images(
    project: Params,
    painted_shards: Path,
    good_package: Path,
    bad_package: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def again(**values: Any) -> tuple[Outcome, bool]:
        """The outcome, and whether the champion's figures came from the store."""
        capsys.readouterr()
        outcome = run(project.override(values), painted_shards, bad_package)
        said = capsys.readouterr()
        stored = "champion's figures from an earlier evaluation" in said.out
        champion = outcome.champion
        assert champion is not None
        assert (f"evaluate {champion.version.uri}:" in said.err) != stored  # progress of a run
        return outcome, stored

    first = run(project, painted_shards, good_package)  # scored as candidate, then champion
    files = list((tmp_path / "runs/evaluations").glob("*.parquet"))
    assert len(files) == 1
    with_store, stored = again(**{"evaluate.batch_size": 3})
    assert stored
    np.testing.assert_array_equal(with_store.champion.records, first.candidate.records)
    kept = files[0].read_bytes()

    for damage in (b"no parquet", kept[:-50], flip(kept), foreign(files[0])):
        files[0].write_bytes(damage)
        without, stored = again()
        assert not stored
        assert without.comparison == with_store.comparison
        assert files[0].read_bytes() == kept  # and mended
    assert again()[1]

    _, stored = again(**{"evaluate.crf": {**CRF, "iterations": 0}})
    assert not stored
    assert len(list((tmp_path / "runs/evaluations").iterdir())) == 4


CRF = {
    "gaussian_sxy": 3.0,
    "gaussian_weight": 3.0,
    "bilateral_sxy": 49.0,
    "bilateral_srgb": 5.0,
    "bilateral_weight": 4.0,
}


def flip(data: bytes) -> bytes:
    """A byte of the pages changed."""
    middle = len(data) // 3
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


def foreign(file: Path) -> bytes:
    """The same figures, of other images."""
    table = pq.read_table(file)
    ids = pa.array([f"other_{name}" for name in table.column("id").to_pylist()], pa.string())
    buffer = io.BytesIO()
    pq.write_table(table.set_column(0, "id", ids), buffer)
    return buffer.getvalue()


@pytest.mark.ray
def test_lost_registry_is_filled_again_from_the_package(
    project: Params, painted_shards: Path, good_package: Path, tmp_path: Path
) -> None:
    run(project, painted_shards, good_package)
    shutil.rmtree(tmp_path / "mlruns", ignore_errors=True)
    fresh = project.override({"tracking.uri": f"sqlite:///{tmp_path}/other/mlflow.db"})
    outcome = run(fresh, painted_shards, good_package)
    assert outcome.verdict == "promoted"
    found = Registry(fresh).get("segcore-painted", CHAMPION)
    assert found is not None
    assert found.package_digest == segcore.package_digest(good_package)


@pytest.mark.ray
def test_registered_model_is_a_plain_pyfunc(
    project: Params, painted_shards: Path, good_package: Path
) -> None:
    import mlflow

    run(project, painted_shards, good_package)
    model = mlflow.pyfunc.load_model("models:/segcore-painted@champion")
    split = open_shards(painted_shards).split("test")
    images = np.stack([split.decode(index)[0] for index in range(3)])
    maps = model.predict(images)
    assert maps.shape == (3, 48, 64)
    assert maps.dtype == np.int64
    predictor: Predictor = segcore.load_package(good_package)
    np.testing.assert_array_equal(maps[1], predictor(images[1])[0].mask)


def shards_with(splits: dict[str, list[int]], source: Path) -> Path:
    """Shards of other splits, whose images are training images of `source`."""
    dataset = open_shards(source)
    write_shards(
        Path("other"),
        dataset.meta,
        splits=splits,
        encode=lambda index: dataset.split("train").read(index),
    )
    return Path("other")


def test_empty_test_split_says_what_to_do(
    project: Params, painted_shards: Path, good_package: Path
) -> None:
    shards = shards_with({"train": [0, 1]}, painted_shards)
    with pytest.raises(DataError, match=r"test split of other has 0 images.*data\.test_fraction"):
        run(project, shards, good_package)


@pytest.mark.ray
def test_validation_judges_where_no_test_image_has_a_label(
    project: Params, painted_shards: Path, good_package: Path
) -> None:
    shards = shards_with({"train": [0, 1], "val": [2, 3, 4]}, painted_shards)
    outcome = run(project, shards, good_package)
    assert outcome.candidate.ids == list(open_shards(shards).split("val").ids)
    assert outcome.summary.startswith("val mIoU")
    text = " ".join(Path("report/index.html").read_text().split())
    assert "3 labelled val images" in text
    assert "the best epoch was chosen on these" in text
