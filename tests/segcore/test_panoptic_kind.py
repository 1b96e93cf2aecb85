"""Panoptic segmentation as a kind: targets, quality, files, pictures, and a fit through it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import object_scenes as scenes
import pyarrow as pa
import pytest
import torch
from PIL import Image

import segcore
from segcore.data.codec import encode_mask
from segcore.data.objects import instance_of
from segcore.data.transforms import Augmentation
from segcore.errors import DataError
from segcore.tasks import get_kind
from segcore.tasks.instance.pictures import FALSE, MISSED
from segcore.tasks.instance.targets import ObjectLabel
from segcore.tasks.panoptic import Panoptic
from segcore.tasks.panoptic.segments import least_stuff, merged, of_label, of_target

KIND = get_kind("panoptic")
SPEC = scenes.spec("panoptic", "panoptic_fpn")
TINY: dict[str, Any] = {
    "backbone": "resnet18",
    "fpn_channels": 32,
    "box_hidden": 64,
    "box_batch_size_per_image": 32,
    "rpn_post_nms_top_n_train": 100,
    "rpn_post_nms_top_n_test": 50,
    "box_detections_per_img": 10,
}


def label(seed: int, count: int = 4) -> ObjectLabel:
    _, mask, instances = scenes.paint(seed, count)
    return ObjectLabel(tuple(instances), scenes.SIZE, encode_mask(mask))


def stuff_of(truth: Panoptic) -> Any:
    """Class of every pixel, -1 where a thing is or nothing is known."""
    classes = truth.classes()
    return np.where(np.isin(classes, np.flatnonzero(scenes.THINGS)), -1, classes)


def prediction(seed: int) -> Panoptic:
    objects = label(seed)
    stuff = np.roll(stuff_of(of_label(objects, SPEC)), 2, 0)
    return merged(stuff, scenes.guess(objects.instances, seed), scenes.THINGS)


def as_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table({n: pa.array([one[n] for one in rows], t) for n, t in KIND.record_columns})


def test_the_map_of_stuff_changes_with_the_objects() -> None:
    """Every pixel of an object is "any thing"; the void of the mask and of outside stays void."""
    objects, targets = label(4, 3), KIND.targets(SPEC)
    augmentation = Augmentation(
        ignore_index=255, mean=(0.4,) * 3, crop=(48, 96), scale=(0.7, 1.3), hflip=0.5
    )
    image = torch.zeros(3, *scenes.SIZE, dtype=torch.uint8)
    seen = set()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        changed, target = targets.augment(augmentation, image, objects, rng=rng, over=None)
        assert changed.shape[1:] == target["semantic"].shape == target["masks"].shape[1:]
        assert target["semantic"].dtype == torch.int64
        covered = target["masks"].bool().any(0)
        assert ((target["semantic"] == 2) | (target["semantic"] == 255))[covered].all()
        seen |= set(target["semantic"].unique().tolist())
    assert seen == {0, 1, 2, 255}


@pytest.mark.parametrize("seed", range(4))
def test_targets_and_labels_are_the_same_picture(seed: int) -> None:
    objects, targets = label(seed, 6), KIND.targets(SPEC)
    target = targets.target(targets.items(objects, objects.size), objects, objects.size)
    first, second = of_target(target, scenes.THINGS), of_label(objects, SPEC)
    np.testing.assert_array_equal(first.ids, second.ids)
    assert first.segments == second.segments
    assert sum(one.area for one in first.segments) == (first.ids > 0).sum()
    assert {one.iscrowd for one in first.segments if one.isthing} == {False, True}


def test_quality_by_hand() -> None:
    """Sky and ground are exact. A disk of 100 px is found with 80: IoU 0.8. One square is missed,
    one disk is false: PQ of disks 0.8 / (1 + 0.5), of squares 0."""
    mask = np.zeros(scenes.SIZE, np.uint8)
    mask[32:] = 2
    shapes = np.zeros((3, *scenes.SIZE), bool)
    shapes[0, 5:15, 5:15], shapes[1, 40:50, 40:50], shapes[2, 5:10, 60:70] = True, True, True
    mask[shapes[0]], mask[shapes[1]] = 1, 3
    truths = [instance_of(shapes[0], 1), instance_of(shapes[1], 3)]
    objects = ObjectLabel(tuple(t for t in truths if t), scenes.SIZE, encode_mask(mask))
    part = shapes[0].copy()
    part[13:15] = False
    found = scenes.detections([part, shapes[2]], [1, 1], [0.9, 0.8])
    stuff = np.where(mask == 2, 2, 0)
    stuff[shapes[0] | shapes[1] | shapes[2]] = -1
    record = KIND.record(merged(stuff, found, scenes.THINGS), objects, SPEC)
    records = KIND.records(as_table([record]), SPEC)
    sky = (32 * 80 - 150) / (32 * 80 - 100)  # the false disk covers 50 px of it
    quality = {"pq_stuff": (sky + 1) / 2, "pq_things": 0.8 / 1.5 / 2}
    figures = {name: value[0] for name, value in KIND.figures(records, np.ones((1, 1))).items()}
    for name, value in quality.items():
        assert figures[name] == pytest.approx(value)
    assert figures["miou"] == pytest.approx((sky + 1) / 2)  # one segment a class of stuff
    assert figures["pq"] == pytest.approx(sum(quality.values()) / 2)
    assert figures["rq"] == pytest.approx((1 + 1 + 1 / 1.5 + 0) / 4)
    assert KIND.image_scores(records) == pytest.approx([figures["pq"]])
    table = KIND.class_table(records, records, SPEC)
    assert table.champion == pytest.approx([sky, 0.8 / 1.5, 1.0, 0.0])
    assert list(figures) == list(KIND.figure_names)


def test_a_weight_of_two_counts_an_image_twice() -> None:
    once = as_table([KIND.record(prediction(seed), label(seed), SPEC) for seed in range(4)])
    twice = pa.concat_tables([once.slice(0, 1), once])
    figures = KIND.figures(KIND.records(once, SPEC), np.array([[2.0, 1, 1, 1], [1, 1, 1, 1]]))
    again = KIND.figures(KIND.records(twice, SPEC), np.ones((1, 5)))
    for name, value in again.items():
        np.testing.assert_allclose(figures[name][0], value[0])
    with pytest.raises(ValueError, match="no records of segments"):
        KIND.records(as_table([{"segments": b"x"}]), SPEC)


def test_stuff_below_a_share_is_left_out_of_small_pictures() -> None:
    assert least_stuff((480, 640)) == least_stuff((2000, 3000)) == 4096
    assert least_stuff((48, 64)) == 40
    stuff = np.zeros((48, 64), np.int16)
    stuff[:3, :13] = 2  # 39 px
    found = scenes.detections([np.pad(np.ones((9, 9), bool), ((30, 9), (30, 25)))], [1], [0.9])
    picture = merged(stuff, found, scenes.THINGS)
    assert [one.category for one in picture.segments] == [1, 0]
    assert (picture.ids[:3, :13] == 0).all()


def test_png_and_json_are_read_back(tmp_path: Path) -> None:
    found = [prediction(seed) for seed in range(3)]
    output = KIND.outputs()[0]
    rows: list[dict[str, Any]] = []
    for i, one in enumerate(found):
        path = tmp_path / output.path(f"a/{i}")
        path.parent.mkdir(parents=True, exist_ok=True)
        output.make(scenes.paint(i)[0], one, SPEC).save(path)  # type: ignore[union-attr]
        facts = {"path": f"in/{i}.jpg", "mask_path": output.path(f"a/{i}"), "height": 64}
        rows.append({**facts, "width": 80, **KIND.row(one, SPEC)})
    strings = [(name, pa.string()) for name in ("path", "mask_path")]
    numbers = [(name, pa.int32()) for name in ("height", "width")]
    schema = pa.schema([*strings, *numbers, *KIND.row_columns])
    KIND.write_job(tmp_path, iter(pa.Table.from_pylist(rows, schema=schema).to_pylist()), SPEC)
    document = json.loads((tmp_path / "panoptic.json").read_text())
    assert [one["isthing"] for one in document["categories"]] == [0, 1, 0, 1]
    assert [one["file_name"] for one in document["images"]] == ["in/0.jpg", "in/1.jpg", "in/2.jpg"]
    for one, annotation in zip(found, document["annotations"], strict=True):
        pixels = np.asarray(Image.open(tmp_path / "panoptic" / annotation["file_name"]), np.int64)
        ids = pixels @ [1, 256, 256**2]
        np.testing.assert_array_equal(ids, one.ids)
        assert len(annotation["segments_info"]) == len(one.segments)
        for info in annotation["segments_info"]:
            y, x = np.nonzero(ids == info["id"])
            assert info["area"] == len(y)
            assert info["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]


def test_ids_above_a_byte_keep_their_value() -> None:
    ids = np.array([[0, 255, 256, 70000]], np.int32)
    image = KIND.outputs()[0].make(np.zeros((1, 4, 3), np.uint8), Panoptic(ids, ()), SPEC)
    assert (np.asarray(image, np.int64) @ [1, 256, 256**2]).tolist() == ids.tolist()


def test_served_arrays_are_padded() -> None:
    found = [prediction(seed) for seed in range(3)]
    served = KIND.serve(found)
    assert {one.name: one.dtype for one in KIND.served} == {
        name: str(value.dtype) for name, value in served.items()
    }
    for one in KIND.served:
        assert len(one.shape) == served[one.name].ndim
    assert served["counts"].tolist() == [len(one.segments) for one in found]
    first = found[0]
    np.testing.assert_array_equal(
        np.where(first.ids > 0, served["classes"][0][first.ids - 1], -1), first.classes()
    )


def test_pictures_show_what_is_wrong() -> None:
    image, _, _ = scenes.paint(0)
    objects = label(0, 2)
    truth = of_label(objects, SPEC)
    missed = next(one for one in truth.segments if one.isthing)
    alarm = np.zeros(scenes.SIZE, bool)
    alarm[2:10, 66:78] = True
    picture = merged(stuff_of(truth), scenes.detections([alarm], [2], [0.9]), scenes.THINGS)
    panel = KIND.panel(image, objects, picture, SPEC)
    errors = np.asarray(panel["errors"])
    assert {one.size for one in panel.values()} == {(80, 64)}
    assert (errors == MISSED).all(2)[truth.ids == missed.id].any()
    assert (errors == FALSE).all(2)[alarm].any()
    sheet = KIND.contact_sheet([image], [picture], [objects], SPEC)
    assert sheet.width > sheet.height


def test_maps_of_other_classes_name_their_image() -> None:
    facts = {"mean": (0.4,), "std": (0.2,), "classes": scenes.CLASSES, "things": scenes.THINGS}
    target = {"labels": torch.tensor([1]), "semantic": torch.tensor([[0, 3, 255]])}
    with pytest.raises(DataError, match=r"the map of a holds \[3\], but there are 2 classes"):
        segcore.create_task("panoptic", **facts).check({"target": [target], "id": ["a"]})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, dict[str, float]]:
    """Shards, a package trained for an epoch by way of the kind alone, and its last metrics."""
    folder = tmp_path_factory.mktemp("panoptic")
    splits = {"train": [f"train_{i:02}" for i in range(6)], "val": ["val_10", "val_11"]}
    data = scenes.write(folder / "shards", {**splits, "test": ["test_02"]})
    torch.manual_seed(0)
    options: dict[str, Any] = {**KIND.model_facts(data), **TINY}
    model = segcore.create_model("panoptic_fpn", **options)
    augment = {"crop": (64, 64), "scale": (0.8, 1.25), "hflip": 0.5}
    loaders = KIND.create_loaders(data, batch_size=3, seed=0, augment=augment)
    task = KIND.create_task(data, loss="cross_entropy", class_weights="none", options={})
    *_, last = segcore.fit(task, model, *loaders, epochs=2, lr=2e-3, device="cpu")
    spec = scenes.spec("panoptic", "panoptic_fpn", **TINY)
    return data, segcore.save_package(folder / "package", model, spec), dict(last.metrics)


def test_epochs_of_fit_and_their_package(trained: tuple[Any, Path, dict[str, float]]) -> None:
    data, package, metrics = trained
    assert np.isfinite(metrics["train/loss"])
    predictor = segcore.load_package(package)
    split, targets = data.split("val"), KIND.targets(data)
    images = [split.decode(i)[0] for i in range(2)]
    both = predictor([*images, images[0][:50, :70]])
    assert [(one.height, one.width) for one in both] == [(64, 80), (64, 80), (50, 70)]
    rows = [KIND.record(one, targets.label(split.read(i)), data) for i, one in enumerate(both[:2])]
    figures = KIND.figures(KIND.records(as_table(rows), data), np.ones((1, 2)))
    for name in KIND.figure_names:
        assert figures[name][0] == pytest.approx(metrics[f"val/{name}"], abs=1e-6, nan_ok=True)


def test_tiles_are_taken_where_memory_is_short(trained: tuple[Any, Path, dict[str, float]]) -> None:
    predictor: Any = segcore.load_package(trained[1], max_memory_gib=0.1)
    image = np.tile(scenes.paint(0)[0], (6, 6, 1))
    assert len(list(predictor.tiles(image, predictor._tile(image.shape[:2])))) > 1
    found = predictor(image)[0]
    assert found.ids.shape == image.shape[:2]
    assert [one.id for one in found.segments] == list(range(1, len(found.segments) + 1))
