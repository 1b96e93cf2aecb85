"""A small real project: painted shards, a trained and an untrained package, params of its own."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import segcore
from pipelines.params import Params
from segcore.data.codec import encode_image, encode_mask
from segcore.data.sample import DatasetInfo
from segcore.data.shard_format import PixelCounts, Row, ShardMeta
from segcore.data.shards import write_shards

CLASSES = ("ground", "disk", "square")
PALETTE = ((90, 90, 90), (220, 60, 60), (60, 120, 220))
SIZE = (48, 64)
REPOSITORY = Path(__file__).parents[2]


def paint(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image [48, 64, 3] of a disk and a square on noise, and its mask with a void border row."""
    generator = np.random.default_rng(seed)
    mask = np.zeros(SIZE, np.uint8)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    cy, cx, radius = generator.integers((12, 12, 6), (36, 52, 12))
    mask[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = 1
    top, left = generator.integers((4, 4), (28, 44))
    mask[top : top + 14, left : left + 14] = 2
    image = np.array(PALETTE, np.uint8)[mask].astype(np.int64)
    image += generator.integers(-25, 26, (*SIZE, 3))
    mask[0] = 255
    return image.clip(0, 255).astype(np.uint8), mask


def row(name: str) -> Row:
    image, mask = paint(int(name[-3:]) + (1000 if name.startswith("test") else 0))
    encoded = encode_image(image, "png")
    return Row(
        id=name,
        image=encoded,
        mask=encode_mask(mask),
        instances=None,
        labels=(0, 1, 2),
        height=SIZE[0],
        width=SIZE[1],
        source_sha256=hashlib.sha256(encoded).hexdigest(),
    )


@pytest.fixture(scope="session")
def painted_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 16 training and 12 test images in three classes."""
    path = tmp_path_factory.mktemp("data") / "shards" / "painted"
    meta = ShardMeta(
        info=DatasetInfo(name="painted", version="1", classes=CLASSES, palette=PALETTE),
        in_channels=3,
        size=None,
        mean=(0.4, 0.35, 0.4),
        std=(0.2, 0.2, 0.2),
        pixel_counts=PixelCounts(pixels=[1, 1, 1], image_pixels=[3, 3, 3], total=3),
    )
    splits = {
        "train": [f"train_{i:03d}" for i in range(16)],
        "test": [f"test_{i:03d}" for i in range(12)],
    }
    write_shards(path, meta, splits=splits, encode=row, rows_per_shard=7)
    return path


def build_package(path: Path, shards: Path, *, steps: int, seed: int = 0) -> Path:
    """A U-Net of four base channels, trained for a number of steps on the painted shards."""
    dataset = segcore.open_shards(shards)
    options = {"base_channels": 4, "norm": "batch", "dropout": 0.0}
    torch.manual_seed(seed)
    model = segcore.create_model("unet", num_classes=3, **options)
    pairs = [dataset.split("train").decode(i) for i in range(4)]
    x = torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor(dataset.mean)[:, None, None]) / torch.tensor(dataset.std)[:, None, None]
    target = torch.from_numpy(np.stack([mask for _, mask in pairs])).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    model.train()
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(x)["out"], target, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    spec = segcore.PackageSpec(
        architecture="unet",
        options=options,
        num_classes=3,
        classes=CLASSES,
        palette=PALETTE,
        mean=dataset.mean,
        std=dataset.std,
        dataset_name=dataset.name,
        dataset_digest=dataset.digest,
    )
    return segcore.save_package(path, model, spec)


@pytest.fixture(scope="session")
def good_package(painted_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned the painted classes."""
    return build_package(tmp_path_factory.mktemp("good") / "candidate", painted_shards, steps=40)


@pytest.fixture(scope="session")
def bad_package(painted_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned next to nothing."""
    return build_package(tmp_path_factory.mktemp("bad") / "candidate", painted_shards, steps=3)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Params of an empty project in the current folder, with an MLflow store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Params.load(REPOSITORY / "params.yaml").override(
        {
            "data.name": "painted",
            "tracking.uri": f"sqlite:///{tmp_path}/mlflow.db",
            "tracking.system_metrics": False,
            "cluster.storage": str(tmp_path / "runs"),
            "evaluate.promote.resamples": 400,
            "evaluate.precision": "fp32",
            "predict.batch_size": 4,
            "predict.precision": "fp32",
        }
    )
