"""The fingerprint that prepare leaves in the manifest, by hand-made masks."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from segcore.data.prepare import prepare
from segcore.data.shapes import measure_shapes
from segcore.data.shards import ShardedDataset, open_shards, verify_shards
from segcore.datasets import DataSource, create_dataset
from segcore.errors import DataError


def write(path: Path, masks: dict[str, np.ndarray], grey: bool = False) -> ShardedDataset:
    """Shards of a folder with these masks; pictures are 10 times the class index."""
    for kind in ("images", "masks"):
        (path / kind).mkdir(parents=True)
    for name, mask in masks.items():
        (path / "images" / name).parent.mkdir(exist_ok=True)
        (path / "masks" / name).parent.mkdir(exist_ok=True)
        pixels = (mask % 255) * np.uint8(10)
        pixels[0, 0] = ord(name[-2])  # no two pictures are the same
        image = Image.fromarray(pixels if grey else np.stack([pixels] * 3, axis=-1))
        image.save(path / "images" / f"{name}.png")
        Image.fromarray(mask).save(path / "masks" / f"{name}.png")
    (path / "classes.txt").write_text("ground\nbar\nsquare\nabsent\n")
    dataset = create_dataset("folder", DataSource(raw=path.parent / "raw", path=path))
    prepare(dataset, path.parent / "out", workers=1)
    return open_shards(path.parent / "out")


def bar() -> np.ndarray:
    mask = np.zeros((60, 100), np.uint8)
    mask[20:26] = 1
    mask[:, :2] = 255
    return mask


def squares() -> np.ndarray:
    mask = np.zeros((80, 100), np.uint8)
    for top, left in ((5, 5), (5, 30), (40, 60)):
        mask[top : top + 10, left : left + 10] = 2
    mask[70, 70] = 2  # too small to count
    return mask


def test_fingerprint_of_a_bar_and_squares(tmp_path: Path) -> None:
    masks = {"train/a1": bar(), "train/b2": squares(), "val/c3": squares(), "test/d4": squares()}
    found = write(tmp_path / "own", masks).fingerprint
    assert found["images"] == {"train": 2, "val": 1, "test": 1, "unlabelled": 0}
    assert found["sizes"] == {
        "distinct": 2, "min": [60, 100], "median": [80, 100], "max": [80, 100],
    }  # fmt: skip
    assert (found["channels"], found["grey_share"], found["deep_share"]) == (3, 0, 0)
    assert found["intensity"] == {"p1": 0, "p50": 0, "p99": 20}
    assert found["void_share"] == pytest.approx(120 / 14000, rel=1e-3)
    ground, ribbon, square, absent = found["classes"]
    labelled = 14000 - 120
    assert ribbon["pixel_share"] == pytest.approx(6 * 98 / labelled, rel=1e-3)
    assert (ribbon["name"], ribbon["image_share"], ribbon["objects"]) == ("bar", 0.5, 1)
    assert ribbon["thickness_px"] == pytest.approx(6, rel=0.1)
    assert ribbon["object_px"] == pytest.approx((6 * 98) ** 0.5, rel=1e-3)
    assert square["pixel_share"] == pytest.approx(301 / labelled, rel=1e-3)
    assert (square["image_share"], square["objects"], square["object_px"]) == (0.5, 3, 10)
    assert (ground["image_share"], ground["objects"]) == (1, 1.5)
    assert absent == {
        "name": "absent", "pixel_share": 0, "image_share": 0,
        "object_px": None, "objects": None, "thickness_px": None,
    }  # fmt: skip


def test_grey_pictures_are_told(tmp_path: Path) -> None:
    found = write(tmp_path / "own", {"train/a1": bar(), "val/b1": bar()}, grey=True).fingerprint
    assert (found["channels"], found["grey_share"]) == (1, 1)


def test_shapes_are_those_of_ndimage() -> None:
    rng = np.random.default_rng(0)
    smooth = [ndimage.gaussian_filter(rng.standard_normal((90, 131)), 4) for _ in range(4)]
    for mask in (
        np.argmax(smooth, axis=0).astype(np.uint8),
        rng.integers(0, 4, (40, 31), np.uint8),
    ):
        shapes = measure_shapes(mask, 3, 255, "x")
        assert [shape.index for shape in shapes] == [0, 1, 2]
        for shape in shapes:
            own = mask == shape.index
            labels, _ = ndimage.label(own, np.ones((3, 3)))
            areas = np.bincount(labels.ravel())[1:]
            expected = sorted(areas[areas >= 4].tolist())
            assert np.repeat(shape.areas, shape.counts).tolist() == expected
            inside = ndimage.distance_transform_edt(own)[own]
            assert shape.thickness_px == pytest.approx(4 * (inside.mean() - 0.5), rel=0.2)
            assert own[tuple(shape.points.T)].all()
            assert len(np.unique(shape.points, axis=0)) == 32


def test_shapes_of_extremes() -> None:
    assert measure_shapes(np.full((5, 9), 255, np.uint8), 2, 255, "x") == []
    (whole,) = measure_shapes(np.zeros((5, 9), np.uint8), 2, 255, "x")
    assert (whole.thickness_px, whole.areas.tolist(), whole.counts.tolist()) == (5, [45], [1])
    _, dot = measure_shapes(np.eye(1, 7, 3, dtype=np.uint8), 2, 255, "x")
    assert (dot.areas.tolist(), dot.points.tolist(), dot.thickness_px) == ([], [[0, 3]], 2)
    noise = np.random.default_rng(0).integers(0, 2, (900, 900), np.uint8)
    assert sum(measure_shapes(noise, 2, 255, "x")[0].areas) > 0


def test_class_points_lie_in_their_class(tmp_path: Path) -> None:
    masks = {"train/b2": squares(), "train/a1": bar(), "val/c3": squares(), "train/d4": bar().T}
    shards = write(tmp_path / "own", masks)
    assert [file["path"] for file in shards.indices] == ["class_points.parquet"]
    points = shards.class_points()
    train = shards.split("train")
    assert train.ids == ["a1", "b2", "d4"]
    found = list(zip(points.row.tolist(), points.klass.tolist(), strict=True))
    assert found == [(0, 0), (0, 1), (1, 0), (1, 2), (2, 0), (2, 1)]
    assert points.rows_of(1).tolist() == [0, 2]
    assert points.classes_of(1).tolist() == [0, 2]
    for row, index in found:
        mask = train.decode(row)[1]
        where = points.points(row, index)
        assert mask is not None
        assert where.shape == (32, 2)
        assert (mask[where[:, 0], where[:, 1]] == index).all()
    assert points.points(0, 2).shape == (0, 2)
    ribbon = points.points(0, 1)
    assert np.bincount(ribbon[:, 1] // 25, minlength=4).min() >= 4  # all along the bar
    assert np.bincount(ribbon[:, 0] - 20, minlength=6).min() >= 3  # and over its width
    (shards.path / "class_points.parquet").write_bytes(b"x" * shards.indices[0]["bytes"])
    with pytest.raises(DataError, match=r"corrupt shard .*class_points\.parquet"):
        shards.class_points()
    with pytest.raises(DataError, match=r"class_points\.parquet: sha256"):
        verify_shards(shards.path)


def test_points_are_the_same_each_time(tmp_path: Path) -> None:
    masks = {"train/a1": squares(), "val/c3": squares()}
    first, second = (write(tmp_path / place / "own", masks) for place in "xy")
    assert first.digest == second.digest


def test_old_shards_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "own", {"train/a1": bar()}).path
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    with pytest.raises(DataError, match="has format 1, this version reads 2: run the prepare"):
        open_shards(path)
