"""The wall: a kind of task that only this file knows goes through every stage."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

import segcore
from pipelines import train
from pipelines.evaluation.compare import evaluate
from pipelines.params import Params
from pipelines.prediction import manifest
from pipelines.prediction.run import predict
from pipelines.tracking.registry import CHAMPION, Registry
from pipelines.training.build import build_model, with_goal
from segcore.data.codec import encode_image
from segcore.data.sample import DatasetInfo, Instance
from segcore.data.shard_format import PixelCounts, Row, ShardMeta
from segcore.data.shards import write_shards
from segcore.data.targets import Targets
from segcore.errors import DataError, OptionError
from segcore.inference import visualize
from segcore.inference.images import to_array
from segcore.models import MODELS, ModelCard
from segcore.tasks import TASKS, Task, get_kind
from segcore.tasks.kind import OVERLAYS, Kind, Output, Served
from segcore.tasks.sections import ClassTable, Column, Curves, Gallery

REPOSITORY = Path(__file__).parents[2]
NAMES, COLORS = ("ground", "red", "blue"), ((0, 0, 0), (255, 0, 0), (0, 0, 255))
SIDE = 4


class Points(Targets):
    """Label: int [n, 3] of (class, x, y); target: how many of each thing, float [T]."""

    what = "points"
    any_size = True

    def is_labelled(self, row: Row) -> bool:
        return row.instances is not None

    def label(self, row: Row) -> Any:
        found = [(i.category, *i.bbox[:2]) for i in row.instances or ()]
        return np.array(found, np.float32).reshape(-1, 3)

    def items(self, label: Any, size: tuple[int, int]) -> list[Tensor]:
        from torchvision import tv_tensors

        corners = torch.from_numpy(label[:, 1:])
        boxes = torch.cat([corners, corners + SIDE], 1)
        return [tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)]

    def target(self, items: list[Tensor], label: Any, size: tuple[int, int]) -> Tensor:
        x, y = (items[0][:, [0, 1]] + items[0][:, [2, 3]]).T / 2
        inside = (x >= 0) & (y >= 0) & (x < size[1]) & (y < size[0])
        return count(label[inside.numpy()])

    def collate(self, images: Sequence[Tensor], targets: Sequence[Any]) -> dict[str, Any]:
        return {"image": list(images), "target": torch.stack(list(targets))}


def count(label: Any) -> Tensor:
    return torch.tensor([float((label[:, 0] == index).sum()) for index in (1, 2)])


class Errors:
    """Mean absolute error of the counts."""

    def __init__(self) -> None:
        self.errors: list[float] = []

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.errors += (prediction - target).abs().mean(1).tolist()

    def compute(self) -> dict[str, float]:
        return {"mae": float(np.mean(self.errors))}

    def state(self) -> Any:
        return self.errors

    def merge(self, states: Sequence[Any]) -> None:
        self.errors = [error for state in states for error in state]


class Counting(Task):
    def training_step(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"mse": (self.predict(model, batch) - batch["target"]).square().mean()}

    def predict(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        return model([image / 255 for image in batch["image"]])

    def new_metric(self) -> Errors:
        return Errors()


class Counts:
    """A prediction."""

    def __init__(self, counts: Any, image: Any) -> None:
        self.counts = counts
        self.height, self.width = image.shape[:2]


class Counter:
    """A predictor."""

    def __init__(
        self, model: nn.Module, spec: Any, *, device: str = "cpu", digest: str = "",
        precision: str = "fp32", max_memory_gib: float | None = None,
    ) -> None:  # fmt: skip
        self.model, self.spec, self.digest, self.precision = model.eval(), spec, digest, precision

    def read(self, image: Any) -> Any:
        return to_array(image, self.spec.in_channels)

    @torch.inference_mode()
    def __call__(self, images: Any, batch_size: int = 8) -> list[Counts]:
        arrays = [self.read(i) for i in (images if isinstance(images, list) else [images])]
        tensors = [torch.tensor(a).permute(2, 0, 1) / 255 for a in arrays]
        return [Counts(c.numpy(), a) for c, a in zip(self.model(tensors), arrays, strict=True)]


class PointKind(Kind):
    title = "Counting"
    usage = "print(prediction.counts)"
    predictor = Counter
    figure_names: Mapping[str, str] = {"mae": "mean error", "exact": "exact images"}
    lower_is_better = frozenset({"mae"})
    headline, headline_label = "mae", "error"
    record_columns = (("predicted", pa.list_(pa.float64())), ("true", pa.list_(pa.float64())))
    row_columns = (("counts", pa.map_(pa.string(), pa.float64())), ("total", pa.float64()))
    served = (Served("counts", "float32", (-1, -1)),)

    def model_facts(self, data: Any) -> dict[str, int]:
        return {"num_classes": sum(data.things), "in_channels": data.in_channels}

    def targets(self, data: Any) -> Targets:
        return Points()

    def create_task(self, dataset: Any = None, **options: Any) -> Task:
        return Counting()

    def serve(self, predictions: Sequence[Counts]) -> Any:
        return {"counts": np.stack([p.counts for p in predictions])}

    def record(self, prediction: Counts, label: Any, data: Any) -> dict[str, Any]:
        return {"predicted": prediction.counts.tolist(), "true": count(label).tolist()}

    def records(self, table: pa.Table, data: Any) -> Any:
        pairs = [table.column(name).to_pylist() for name in ("predicted", "true")]
        return np.abs(np.array(pairs[0]) - np.array(pairs[1]))

    def figures(self, records: Any, weights: Any) -> dict[str, Any]:
        exact = (records < 0.5).all(1)
        total = weights.sum(1)
        return {"mae": weights @ records.mean(1) / total, "exact": weights @ exact / total}

    def image_scores(self, records: Any) -> Any:
        return 1 / (1 + records.mean(1))

    def class_table(self, records: Any, other: Any, data: Any) -> ClassTable:
        columns = [Column("error", "error", records.mean(0).tolist())]
        champion = None if other is None else other.mean(0).tolist()
        return ClassTable(data.classes[1:], data.palette[1:], columns, champion)

    def sections(self, records: Any, other: Any, data: Any) -> list[Any]:
        errors = sorted(records.mean(1).tolist())
        curve = Curves(
            {"candidate": (range(len(errors)), errors)}, "rank", "error", "Errors", "errors"
        )
        gallery = Gallery([(Image.new("RGB", (20, 20), COLORS[1]), "a red one")], "Worst misses")
        return [self.class_table(records, other, data), curve, gallery]

    def overlay(self, image: Any, prediction: Counts, spec: Any) -> Image.Image:
        return Image.fromarray(255 - image)

    def panel(self, image: Any, label: Any, prediction: Counts, spec: Any) -> Any:
        return {"image": Image.fromarray(image), "counted": self.overlay(image, prediction, spec)}

    def contact_sheet(self, images: Any, predictions: Any, labels: Any, spec: Any) -> Image.Image:
        assert len(images) == len(predictions) == len(labels)
        return visualize.stack([Image.fromarray(image) for image in images])

    def outputs(self, extras: Any = ()) -> tuple[Output, ...]:
        main = Output(
            "counts", ".json", lambda image, p, spec: json.dumps(p.counts.tolist()).encode()
        )
        return (main, Output(OVERLAYS, ".jpg", self.overlay)) if OVERLAYS in extras else (main,)

    def row(self, prediction: Counts, spec: Any, extras: Any = ()) -> dict[str, Any]:
        counts = [(n, float(c)) for n, c in zip(NAMES[1:], prediction.counts, strict=True)]
        return {"counts": counts, "total": float(prediction.counts.sum())}

    def write_job(self, out: Path, rows: Any, spec: Any, extras: Any = ()) -> None:
        (out / "totals.json").write_text(json.dumps({row["path"]: row["total"] for row in rows}))


def write_counts(image: Any, prediction: Counts, spec: Any) -> bytes:
    return json.dumps(prediction.counts.tolist()).encode()


KIND = PointKind()
CARDS = {"dots": ModelCard("dots", "Dots", "none", 2026, "points", 14)}


class Dots(nn.Module):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(in_channels, num_classes)

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        return self.head(10 * torch.stack([image.mean((1, 2)) for image in images]))


def dots(*, num_classes: int, in_channels: int = 3) -> nn.Module:
    return Dots(num_classes, in_channels)


def make_row(name: str) -> Row:
    """A black picture, of one of two sizes, with red and blue squares; the third has none."""
    number = int(name[-1])
    rng, size = np.random.default_rng(number), (48, 48) if number % 2 else (40, 64)
    image, instances = np.zeros((*size, 3), np.uint8), []
    for _ in range(0 if number == 2 else rng.integers(1, 9)):
        x, y = int(rng.integers(0, size[1] - SIDE)), int(rng.integers(0, size[0] - SIDE))
        category = int(rng.integers(1, 3))
        image[y : y + SIDE, x : x + SIDE] = COLORS[category]
        instances.append(Instance(category, (x, y, SIDE, SIDE), SIDE * SIDE, ""))
    encoded = encode_image(image, "png")
    digest = hashlib.sha256(encoded).hexdigest()
    return Row(name, encoded, None, tuple(instances), None, *size, digest)


PARAMS = {
    "data.name": "dots",
    "model.name": "dots",
    "model.options": {},
    "loss.name": "none",
    "loss.class_weights": "none",
    "train.budget_minutes": 1.0,
    "train.epochs": 20,
    "train.max_minutes": None,
    "train.epoch_steps": None,
    "train.refit": False,
    "train.batch_size": 4,
    "train.lr": 0.05,
    "train.precision": "fp32",
    "train.augment.crop": None,
    "train.progressive": 0.0,
    "train.augment.class_crops": 0.0,
    "train.augment.vflip": 0.5,
    "train.augment.rot90": 0.0,
    "train.augment.scale": [1.0, 1.0],
    "train.augment.color": 0.2,
    "train.overlay_epochs": 10,
    "tune.trials": 0,
    "evaluate.promote.resamples": 200,
    "evaluate.precision": "fp32",
    "predict.precision": "fp32",
    "tracking.system_metrics": False,
}


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A project folder with eight pictures, and the kind registered by its address alone."""
    monkeypatch.chdir(tmp_path)
    for name in ("SEGCORE_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(TASKS, "points", f"{__name__}:KIND")
    monkeypatch.setitem(MODELS, "dots", f"{__name__}:dots")
    info = DatasetInfo("dots", "1", NAMES, COLORS, tasks=("points",), things=(False, True, True))
    counts = PixelCounts(pixels=[1, 1, 1], image_pixels=[3, 3, 3], total=3)
    meta = ShardMeta(info, 3, None, (0.1, 0.1, 0.1), (0.2, 0.2, 0.2), counts)
    names = [f"dots_{number}" for number in range(8)]
    splits = {"train": names, "val": names[:4], "test": names}
    write_shards(tmp_path / "data/shards/dots", meta, splits=splits, encode=make_row)
    found = Params.load(REPOSITORY / "params.yaml").override(
        {**PARAMS, "tracking.uri": f"sqlite:///{tmp_path}/mlflow.db"}
    )
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(found.dump()))
    return found


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_every_cache_holds_labels_that_are_no_maps(params: Params, cache: str) -> None:
    dataset = segcore.open_shards("data/shards/dots")
    assert get_kind("points") is KIND
    for augment in (None, {"hflip": 0.5, "rotate_deg": 5.0, "crop": [32, 32]}):
        for _ in range(2):  # the second finds the file of the disk cache
            train_loader, val = KIND.create_loaders(
                dataset, batch_size=4, seed=0, cache=cache, cache_dir=Path("cache"), augment=augment
            )
            seen = {
                name: target
                for batch in val
                for name, target in zip(batch["id"], batch["target"], strict=True)
            }
            for name, target in seen.items():
                assert torch.equal(target, count(Points().label(make_row(name))))
            for batch in train_loader:
                assert len(batch["image"]) == 4
                assert all(
                    bool((target <= count(Points().label(make_row(name)))).all())
                    for name, target in zip(batch["id"], batch["target"], strict=True)
                )


def test_unlabelled_rows_and_foreign_options_are_refused(params: Params) -> None:
    dataset = segcore.open_shards("data/shards/dots")
    rows = {"train": [Row("x", make_row("dots_1").image, None, None, None, 48, 48, "")]}
    write_shards(Path("bare"), dataset.meta, splits=rows, encode=lambda row: row)
    train_loader, _ = KIND.create_loaders(segcore.open_shards("bare"), batch_size=1, seed=0)
    with pytest.raises(DataError, match="image 'x' has no points"):
        list(train_loader)
    spec = train.package_spec(params, dataset, {})
    with pytest.raises(OptionError, match="Counting has no option crf"):
        KIND.create_predictor(Dots(2, 3), spec, crf=None)
    found = with_goal(params, dataset)
    assert (found.tune.metric, found.tune.mode) == ("mae", "min")
    with pytest.raises(OptionError, match=r"unet, which is for the task semantic.*points"):
        build_model(params.override({"model.name": "unet"}), dataset)


@pytest.mark.ray
def test_the_toy_goes_through_every_stage(params: Params, tmp_path: Path) -> None:
    import mlflow

    shards, package = tmp_path / "data/shards/dots", tmp_path / "outputs/candidate"
    dataset = segcore.open_shards(shards)
    bad = Dots(2, 3)
    nn.init.constant_(bad.head.bias, 50.0)
    segcore.save_package("bad", bad, train.package_spec(params, dataset, {}))
    report = Path("report")
    assert evaluate(params, shards=shards, package=Path("bad"), folder=report).verdict == "promoted"

    train.main()
    predictor = segcore.load_package(package)
    assert predictor.spec.task == "points"
    assert predictor.spec.metrics["mae"] < 5
    assert "Counting into 3 classes" in (package / "README.md").read_text()
    registry = Registry(params)
    candidate = registry.get("segcore-dots", "candidate")
    overlays = registry._client.list_artifacts(candidate.run_id, "overlays")
    assert [entry.path for entry in overlays] == [f"overlays/epoch_{n:04d}.png" for n in (10, 20)]

    outcome = evaluate(params, shards=shards, package=package, folder=report)
    assert outcome.verdict == "promoted"
    assert outcome.comparison.low > 0  # by how much it is better: less error
    assert registry.get("segcore-dots", CHAMPION).version == candidate.version
    check_report(report, outcome)
    tags = registry._client.get_model_version("segcore-dots", candidate.version).tags
    assert float(tags["test_mae"]) == pytest.approx(outcome.candidate.figures["mae"], abs=1e-6)

    uri = "models:/segcore-dots@champion"
    check_predictions(params, shards, uri)
    model = mlflow.pyfunc.load_model(uri)
    image, _ = dataset.split("test").decode(1)
    served = model.predict(np.stack([image, image]))
    np.testing.assert_allclose(served["counts"][1], predictor(image)[0].counts, rtol=1e-5)


def check_report(folder: Path, outcome: Any) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["mae"] == pytest.approx(outcome.candidate.figures["mae"])
    assert set(metrics["error"]) == {"red", "blue"}
    files = {path.name for path in folder.iterdir()}
    assert files == {
        "errors.csv", "index.html", "metrics.json", "overlays", "per_class.csv", "records.parquet"
    }  # fmt: skip
    table = pq.read_table(folder / "records.parquet")
    assert table.column("model").to_pylist() == ["candidate"] * 8 + ["champion"] * 8
    page = (folder / "index.html").read_text()
    for text in ("Worst misses", "a red one", "mean error", "error per image", "counted"):
        assert text in page
    assert "IoU" not in page


def check_predictions(params: Params, shards: Path, uri: str) -> None:
    out = Path("out")
    for done in (8, 0):
        summary = predict(params, images=f"{shards}/test", model=uri, out=out, overlays=True)
        assert (summary.done, len(summary.failed)) == (done, 0)
    rows = manifest.read(out)
    counts = {Path(row.mask_path).stem: row.facts for row in rows.values()}
    assert json.loads((out / "counts/dots_3.json").read_text()) == pytest.approx(
        [value for _, value in counts["dots_3"]["counts"]]
    )
    totals = json.loads((out / "totals.json").read_text())
    assert totals == {path: row.facts["total"] for path, row in rows.items()}
    assert len(list((out / "overlays").glob("*.jpg"))) == 8
