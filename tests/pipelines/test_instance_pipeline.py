"""Instances and panoptic pictures of `streets` through train, evaluate, predict and MLflow."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

import segcore
from pipelines import train
from pipelines.evaluation.compare import evaluate
from pipelines.params import Params
from pipelines.prediction import manifest
from pipelines.prediction.run import predict
from segcore.data.prepare import prepare
from segcore.datasets import create_dataset
from segcore.datasets.base import DataSource

REPOSITORY = Path(__file__).parents[2]
SIZES = {"num_train": 6, "num_val": 2, "num_test": 3, "height": 96, "width": 128}
TINY: dict[str, Any] = {
    "backbone": "resnet18",
    "fpn_channels": 32,
    "box_hidden": 64,
    "box_batch_size_per_image": 64,
    "rpn_post_nms_top_n_train": 200,
    "rpn_post_nms_top_n_test": 100,
    "box_detections_per_img": 30,
}
PARAMS = {
    "data.name": "streets",
    "data.options": SIZES,
    "model.options": TINY,
    "loss.name": "cross_entropy",
    "loss.class_weights": "none",
    "train.budget_minutes": 1.0,
    "train.epochs": 2,
    "train.max_minutes": None,
    "train.epoch_steps": None,
    "train.refit": False,
    "train.batch_size": 3,
    "train.lr": 0.002,
    "train.precision": "fp32",
    "train.augment.crop": [96, 96],
    "train.progressive": 0.0,
    "train.augment.class_crops": 0.0,
    "train.augment.vflip": 0.0,
    "train.augment.rot90": 0.0,
    "train.augment.scale": [1.0, 1.25],
    "train.augment.color": 0.2,
    "train.overlay_epochs": 2,
    "tune.trials": 0,
    "evaluate.promote.resamples": 200,
    "evaluate.precision": "fp32",
    "predict.precision": "fp32",
    "tracking.system_metrics": False,
}

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streets")
    dataset = create_dataset("streets", DataSource(raw=folder / "raw", options=SIZES))
    dataset.download()
    prepare(dataset, folder / "shards", workers=1)
    return folder / "shards"


@pytest.fixture
def params(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A project folder with the shards in place; `model.name` is left to the test."""
    monkeypatch.chdir(tmp_path)
    for name in ("SEGCORE_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "data/shards").mkdir(parents=True)
    (tmp_path / "data/shards/streets").symlink_to(shards)
    return Params.load(REPOSITORY / "params.yaml").override(
        {**PARAMS, "tracking.uri": f"sqlite:///{tmp_path}/mlflow.db"}
    )


def run(params: Params, name: str) -> tuple[Params, dict[str, Any], Any]:
    """Train, evaluate and predict; params, metrics of the report, the pyfunc model."""
    import mlflow

    params = params.override({"model.name": name})
    Path("params.yaml").write_text(yaml.safe_dump(params.dump()))
    train.main()
    package, shards = Path("outputs/candidate"), Path("data/shards/streets")
    outcome = evaluate(params, shards=shards, package=package, folder=Path("report"))
    assert outcome.verdict == "promoted"
    uri = "models:/segcore-streets@champion"
    for done in (3, 0):
        images = f"{shards}/test"
        summary = predict(params, images=images, model=uri, out=Path("out"), overlays=True)
        assert (summary.done, len(summary.failed)) == (done, 0)
    assert len(list(Path("out/overlays").rglob("*.jpg"))) == 3
    metrics = json.loads(Path("report/metrics.json").read_text())
    return params, metrics, mlflow.pyfunc.load_model(uri)


def test_objects_of_streets(params: Params) -> None:
    _, metrics, model = run(params, "mask_rcnn")
    assert 0 <= metrics["ap"] <= metrics["ap50"] <= 1
    assert set(metrics["class_ap"]) == {"car", "person", "tree"}
    files = {path.name for path in Path("report").iterdir()}
    assert {"per_class.csv", "precision_recall.csv", "objects.parquet", "overlays"} <= files
    page = Path("report/index.html").read_text()
    assert "Precision over recall" in page
    assert "mIoU" not in page
    dataset = segcore.open_shards("data/shards/streets")
    image, _ = dataset.split("test").decode(0)
    served = model.predict(np.stack([image, image]))
    found = segcore.load_package("outputs/candidate")(image)[0]
    np.testing.assert_array_equal(served["ids"][0], found.id_map())
    rows = manifest.read(Path("out"))
    document = json.loads(Path("out/coco.json").read_text())
    assert len(document["images"]) == 3
    assert len(document["annotations"]) == sum(len(row.facts["objects"]) for row in rows.values())
    for row in rows.values():
        ids = np.asarray(Image.open(Path("out") / row.mask_path))
        assert (ids.shape, ids.dtype) == ((96, 128), np.uint16)
        assert ids.max() <= len(row.facts["objects"])

    strict = params.override({"predict.min_score": 1.0, "predict.extras": ["contours"]})
    images, uri = "data/shards/streets/test", "models:/segcore-streets@champion"
    again = predict(strict, images=images, model=uri, out=Path("out"), overlays=False)
    assert (again.done, again.kept) == (3, 0), "another least score is another result"
    assert all(not row.facts["objects"] for row in manifest.read(Path("out")).values())
    assert len(list(Path("out/contours").rglob("*.geojson"))) == 3


def test_panoptic_pictures_of_streets(params: Params) -> None:
    _, metrics, model = run(params, "panoptic_fpn")
    assert 0 <= metrics["pq_things"] <= 1
    assert set(metrics["class_pq"]) == set(segcore.open_shards("data/shards/streets").classes)
    table = pq.read_table("report/segments.parquet")
    assert table.column("model").to_pylist() == ["candidate"] * 3
    assert "panoptic quality of stuff" in Path("report/index.html").read_text()
    dataset = segcore.open_shards("data/shards/streets")
    image, _ = dataset.split("test").decode(0)
    served = model.predict(np.stack([image, image]))
    found = segcore.load_package("outputs/candidate")(image)[0]
    np.testing.assert_array_equal(served["ids"][1], found.ids)
    document = json.loads(Path("out/panoptic.json").read_text())
    assert len(document["annotations"]) == len(document["images"]) == 3
    for annotation in document["annotations"]:
        pixels = np.asarray(Image.open(Path("out/panoptic") / annotation["file_name"]), np.int64)
        known = {0, *(one["id"] for one in annotation["segments_info"])}
        assert set(np.unique(pixels @ [1, 256, 256**2]).tolist()) <= known
