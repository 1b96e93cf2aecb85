"""Instance segmentation as a kind: targets, figures, files, pictures, and a fit through it."""

import io
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import object_scenes as scenes
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

import segcore
from segcore.data.objects import instance_of
from segcore.data.transforms import Augmentation
from segcore.datasets.polygons import fill_polygon
from segcore.errors import DataError, OptionError
from segcore.inference import rle
from segcore.metrics import AverageRecall, BowlScore, MeanAveragePrecision
from segcore.tasks import get_kind
from segcore.tasks.contours import polygons
from segcore.tasks.instance import InstancePrediction
from segcore.tasks.instance.detections import compress, join
from segcore.tasks.instance.drawing import Shape, color_of, contour, draw
from segcore.tasks.instance.pictures import FALSE, MISSED
from segcore.tasks.instance.predictor import class_indices
from segcore.tasks.instance.targets import ObjectLabel, ObjectTargets, draw_layers
from segcore.tasks.sections import ClassTable, Curves

KIND = get_kind("instance")
TINY: dict[str, Any] = {
    "backbone": "resnet18",
    "fpn_channels": 32,
    "box_hidden": 64,
    "box_batch_size_per_image": 32,
    "rpn_post_nms_top_n_train": 100,
    "rpn_post_nms_top_n_test": 50,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 10,
}
CHANGES: dict[str, dict[str, Any]] = {
    "flips": {"hflip": 0.5, "vflip": 0.5},
    "crop": {"crop": (40, 40), "scale": (0.6, 1.8), "rot90": 0.5},
    "turn": {"rotate_deg": 40.0, "translate_px": 6},
    "elastic": {"elastic_alpha": 60.0, "elastic_sigma": 4.0},
}


def label(seed: int, count: int = 8) -> ObjectLabel:
    _, _, instances = scenes.paint(seed, count)
    return ObjectLabel(tuple(instances), scenes.SIZE)


def augmentation(**options: Any) -> Augmentation:
    return Augmentation(ignore_index=255, mean=(0.4, 0.4, 0.4), **options)


def prediction(seed: int, count: int = 8) -> InstancePrediction:
    found = scenes.guess(label(seed, count).instances, seed)
    return InstancePrediction(found, class_indices(found.labels, scenes.THINGS))


@given(seed=st.integers(0, 500), count=st.integers(0, 12))
@settings(max_examples=25, deadline=None)
def test_layers_hide_nothing(seed: int, count: int) -> None:
    objects = label(seed, count)
    layers = draw_layers(objects.instances, objects.size)
    for place, one in enumerate(objects.instances, start=1):
        found = (layers == place).any(0)
        np.testing.assert_array_equal(found, rle.decode(one.counts, *scenes.SIZE))
    assert np.isin(layers, np.arange(len(objects.instances) + 1)).all()
    assert len(layers) == 1 or count > 1


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("seed", range(3))
def test_objects_change_as_their_own_masks(change: str, seed: int) -> None:
    """The twin: each object alone, as a mask of its own, under the same draws."""
    from torchvision import tv_tensors

    objects, options = label(seed), augmentation(**CHANGES[change])
    image = torch.zeros(3, *scenes.SIZE, dtype=torch.uint8)
    targets = ObjectTargets(scenes.THINGS, min_share=0.0, min_px=1)
    rng = np.random.default_rng(seed)
    _, target = targets.augment(options, image, objects, rng=rng, over=None)
    twins = []
    for one in objects.instances:
        mask = torch.from_numpy(rle.decode(one.counts, *scenes.SIZE)).to(torch.uint8)
        given = [tv_tensors.Image(image), tv_tensors.Mask(mask[None])]
        changed = options.apply(given, scenes.SIZE, np.random.default_rng(seed))[1][0]
        twins += [changed.as_subclass(torch.Tensor)] if changed.any() else []
    assert len(target["masks"]) == len(twins)
    assert all(torch.equal(a, b) for a, b in zip(target["masks"], twins, strict=True))
    for box, mask, area in zip(target["boxes"], target["masks"], target["area"], strict=True):
        rows, columns = mask.nonzero().T
        ends = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert box.tolist() == [float(end) for end in ends]
        assert area == mask.sum()


@pytest.mark.parametrize(("left", "kept"), [(12, True), (15, True), (16, False)])
def test_less_than_a_quarter_is_dropped(left: int, kept: bool) -> None:
    """A square of 20 px a side, enlarged twice; the crop begins `left` pixels inside of it."""
    mask = np.zeros(scenes.SIZE, bool)
    mask[20:40, 0:20] = True
    made = instance_of(mask, 1)
    assert made is not None
    options = augmentation(crop=(128, 2 * (80 - left)), scale=(2.0, 2.0))
    image = torch.zeros(3, *scenes.SIZE, dtype=torch.uint8)
    targets, objects = ObjectTargets(scenes.THINGS), ObjectLabel((made,), scenes.SIZE)
    rng = np.random.default_rng(0)
    _, target = targets.augment(options, image, objects, rng=rng, over=(0, 79))
    assert target["area"].tolist() == ([4 * 20 * (20 - left)] if kept else [])


def test_a_picture_without_objects_has_empty_tensors() -> None:
    target = ObjectTargets(scenes.THINGS).augment(
        augmentation(**CHANGES["crop"]),
        torch.zeros(3, *scenes.SIZE, dtype=torch.uint8),
        ObjectLabel((), scenes.SIZE),
        rng=np.random.default_rng(0),
        over=None,
    )[1]
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 40, 40)
    assert target["labels"].dtype == torch.int64


def table_of(seeds: range) -> pa.Table:
    spec = scenes.spec("instance", "mask_rcnn")
    return as_table([KIND.record(prediction(seed), label(seed), spec) for seed in seeds])


def as_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table({n: pa.array([one[n] for one in rows], t) for n, t in KIND.record_columns})


def test_figures_equal_the_metrics_of_masks() -> None:
    spec, seeds = scenes.spec("instance", "mask_rcnn"), range(6)
    records = KIND.records(table_of(seeds), spec)
    figures = KIND.figures(records, np.ones((1, len(seeds))))
    metrics: list[Any] = [MeanAveragePrecision("segm"), AverageRecall("segm"), BowlScore()]
    targets = ObjectTargets(scenes.THINGS)
    for seed in seeds:
        guess, objects = prediction(seed), label(seed)
        dense = {"labels": guess.detections.labels, "scores": guess.scores, "masks": guess.masks}
        target = targets.target(targets.items(objects, objects.size), objects, objects.size)
        for metric in metrics:
            metric.update([dense], [target])
    precision, recall, bowl = (metric.compute() for metric in metrics)
    expected = {name: precision[name] for name in list(figures)[:6]}
    expected |= {f"ar{n}": recall[f"ar_{n}"] for n in (10, 100, 1000)} | bowl
    assert {name: value[0] for name, value in figures.items()} == pytest.approx(
        expected, nan_ok=True
    )
    assert 0.1 < figures["ap"][0] < 0.95
    assert list(figures) == list(KIND.figure_names)


def test_a_weight_of_two_counts_an_image_twice() -> None:
    spec = scenes.spec("instance", "mask_rcnn")
    once = table_of(range(4))
    twice = pa.concat_tables([once.slice(0, 1), once])
    weights = np.array([[2.0, 1, 1, 1], [1, 1, 1, 1]])
    figures = KIND.figures(KIND.records(once, spec), weights)
    again = KIND.figures(KIND.records(twice, spec), np.ones((1, 5)))
    for name, value in again.items():
        np.testing.assert_allclose(figures[name][0], value[0])
    scores = KIND.image_scores(KIND.records(once, spec))
    assert scores.shape == (4,)
    assert ((scores >= 0) & (scores <= 1)).all()


def test_damaged_records_are_told() -> None:
    table = table_of(range(2))
    broken = table.set_column(0, "precision", pa.array([b"x", b"y"]))
    with pytest.raises(ValueError, match="no records of objects"):
        KIND.records(broken, scenes.spec("instance", "mask_rcnn"))


def test_sections_have_every_thing() -> None:
    spec = scenes.spec("instance", "mask_rcnn")
    records = KIND.records(table_of(range(4)), spec)
    table, curves = KIND.sections(records, records, spec)
    assert isinstance(table, ClassTable)
    assert isinstance(curves, Curves)
    assert list(table.names) == ["disk", "square"]
    assert table.champion == table.columns[0].values
    assert {name.split(",")[0] for name in curves.series} == {"disk", "square"}
    for recall, precision in curves.series.values():
        assert len(recall) == len(precision) == 101
        assert all(a >= b for a, b in pairwise(precision))


def test_compressed_outputs_keep_what_has_pixels() -> None:
    masks = torch.zeros(4, 1, 20, 30)
    masks[0, 0, 2:8, 3:9] = 0.9
    masks[1, 0, 5:6, 5:6] = 0.4  # below the threshold: an empty mask
    masks[2, 0, 10:20, 20:30] = 0.7
    masks[3] = 1.0
    output = {
        "boxes": torch.rand(4, 4) * 20,
        "labels": torch.tensor([1, 2, 2, 1]),
        "scores": torch.tensor([0.5, 0.9, 0.8, 0.1]),
        "masks": masks,
    }
    found = compress(output, (20, 30), min_score=0.2)
    order = output["scores"].argsort(descending=True)
    sorted_before = compress({key: value[order] for key, value in output.items()}, (20, 30))
    assert sorted_before.counts[:2] == found.counts
    assert found.labels.tolist() == [2, 1]
    np.testing.assert_allclose(found.scores, [0.8, 0.5])
    assert np.array_equal(rle.decode(found.counts[0], 20, 30), masks[2, 0].numpy() > 0.5)
    ids = InstancePrediction(found, found.labels).id_map()
    assert ids.dtype == np.uint16
    assert (ids == 1).sum() == 100
    assert (ids == 2).sum() == 36
    doubled = compress(output, (40, 60), min_score=0.6)
    assert rle.decode(doubled.counts[0], 40, 60).sum() == pytest.approx(400, rel=0.1)
    np.testing.assert_allclose(doubled.boxes[0], 2 * output["boxes"][2])


def test_of_overlapping_objects_the_better_is_on_top() -> None:
    first, second = np.zeros((2, *scenes.SIZE), bool)
    first[:20, :20], second[10:30, 10:30] = True, True
    ids = scenes.detections([first, second], [1, 1], [0.9, 0.8]).id_map()
    assert (ids == 1).sum() == 400
    assert (ids == 2).sum() == 300


def test_tiles_join_to_the_objects_of_the_image() -> None:
    """Two tiles that share 24 columns, each with the part that it sees of every object."""
    masks = np.zeros((4, 40, 100), bool)
    masks[0, 5:15, 2:12], masks[1, 5:15, 45:60] = True, True  # seen by one; by both, whole
    masks[2, 20:32, 30:52], masks[3, 20:32, 53:70] = True, True  # cut off by the second; by none
    parts = []
    for left, right, score in ((0, 64, 0.9), (40, 100, 0.8)):
        seen = [mask[:, left:right] for mask in masks if mask[:, left:right].any()]
        parts.append((scenes.detections(seen, [1] * len(seen), [score] * len(seen)), (0, left)))
    found = join(parts, (40, 100))
    whole = {rle.encode(mask) for mask in masks}
    assert len(found) == 4
    assert whole <= set(found.counts) | {rle.encode(masks[3])}
    assert sum(rle.decode(text, 40, 100).sum() for text in found.counts) == masks.sum()


@given(mask=hnp.arrays(bool, (7, 9)))
@settings(max_examples=60, deadline=None)
def test_polygons_fill_to_their_mask(mask: np.ndarray) -> None:
    filled = np.zeros((12, 15), bool)
    for rings in polygons(mask, (3, 4)):
        for ring in rings:
            assert ring[0] == ring[-1]
            assert all((a[0] == b[0]) != (a[1] == b[1]) for a, b in pairwise(ring))
            filled ^= fill_polygon(np.array(ring[:-1], np.float64), (12, 15))
    assert np.array_equal(filled[3:10, 4:13], mask)
    assert filled.sum() == mask.sum()


def test_coco_json_is_read_by_coco_tools(tmp_path: Path) -> None:
    from faster_coco_eval import COCO
    from faster_coco_eval.core import mask as coco_mask

    spec = scenes.spec("instance", "mask_rcnn")
    found = [prediction(seed) for seed in range(3)]
    rows: list[dict[str, Any]] = [
        {"path": f"{i}.jpg", "height": 64, "width": 80, **KIND.row(one, spec)}
        for i, one in enumerate(found)
    ]
    schema = pa.schema([("path", pa.string()), ("height", pa.int32()), ("width", pa.int32())])
    for name, kind in KIND.row_columns:
        schema = schema.append(pa.field(name, kind))
    rows = pa.Table.from_pylist(rows, schema=schema).to_pylist()
    KIND.write_job(tmp_path, iter(rows), spec)
    document = json.loads((tmp_path / "coco.json").read_text())
    coco = COCO(str(tmp_path / "coco.json"))
    assert [one["name"] for one in coco.loadCats(coco.getCatIds())] == ["disk", "square"]
    assert len(coco.loadRes(document["annotations"]).anns) == sum(map(len, found))
    for number, one in enumerate(found, start=1):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=number))
        masks = [coco_mask.decode(entry["segmentation"]) for entry in annotations]
        np.testing.assert_array_equal(np.stack(masks).astype(bool), one.masks)
        assert [entry["category_id"] for entry in annotations] == one.classes.tolist()


def test_files_of_an_image(tmp_path: Path) -> None:
    spec, found = scenes.spec("instance", "mask_rcnn"), prediction(1)
    image = scenes.paint(1, 8)[0]
    main, overlay, contours = KIND.outputs({"overlays", "contours"})
    assert [one.path("a/b") for one in (main, overlay, contours)] == [
        "instances/a/b.png",
        "overlays/a/b.jpg",
        "contours/a/b.geojson",
    ]
    ids = np.asarray(Image.open(io.BytesIO(main.make(image, found, spec))))  # type: ignore[arg-type]
    assert ids.dtype == np.uint16
    np.testing.assert_array_equal(ids, found.id_map())
    document = json.loads(contours.make(image, found, spec))  # type: ignore[arg-type]
    assert len(document["features"]) == len(found)
    assert {one["properties"]["class"] for one in document["features"]} <= {"disk", "square"}


def test_served_arrays_are_padded() -> None:
    found = [prediction(seed, count) for seed, count in ((0, 8), (1, 0), (2, 3))]
    served = KIND.serve(found)
    assert {one.name: one.dtype for one in KIND.served} == {
        name: str(value.dtype) for name, value in served.items()
    }
    for one in KIND.served:
        assert len(one.shape) == served[one.name].ndim
    assert served["counts"].tolist() == [len(one) for one in found]
    assert served["boxes"].shape == (3, max(map(len, found)), 4)
    assert not served["ids"][1].any()


def test_misses_and_false_alarms_have_their_colours() -> None:
    image, _, instances = scenes.paint(5, 2)
    objects = ObjectLabel(tuple(instances), scenes.SIZE)
    spec = scenes.spec("instance", "mask_rcnn")
    missed = rle.decode(instances[1].counts, *scenes.SIZE)
    alarm = np.zeros(scenes.SIZE, bool)
    alarm[2:10, 66:78] = True
    hit = rle.decode(instances[0].counts, *scenes.SIZE)
    found = scenes.detections([hit, alarm], [1, 1], [0.9, 0.7])
    panel = KIND.panel(image, objects, InstancePrediction(found, np.array([1, 1])), spec)
    errors = np.asarray(panel["errors"])
    assert {picture.size for picture in panel.values()} == {(80, 64)}
    edge = contour(missed) & ~hit
    assert (errors[edge] == MISSED).all()
    assert (errors[contour(alarm)] == FALSE).all()


def test_words_are_written_where_there_is_room() -> None:
    image = np.full((200, 300, 3), 128, np.uint8)
    small, large = np.ones((8, 8), bool), np.ones((80, 120), bool)
    bare = draw(image, [Shape(small, (10, 10), color_of(0)), Shape(large, (60, 60), color_of(1))])
    told = draw(
        image,
        [
            Shape(small, (10, 10), color_of(0), ("disk 0.91",)),
            Shape(large, (60, 60), color_of(1), ("a much longer name of a class 0.50", "0.50")),
        ],
    )
    changed = (np.asarray(bare) != np.asarray(told)).any(2)
    assert not changed[:40].any()
    assert changed[60:80, 60:90].any()
    assert len({color_of(number) for number in range(200)}) == 200


def test_options_of_losses_change_nothing_and_others_are_refused() -> None:
    facts = {"mean": (0.4,), "std": (0.2,), "classes": scenes.CLASSES, "things": scenes.THINGS}
    task = segcore.create_task("instance", loss="dice", class_weights="none", options={}, **facts)
    assert task.names == ("disk", "square")  # type: ignore[attr-defined]
    with pytest.raises(OptionError, match="no option colour"):
        segcore.create_task("instance", colour=1, **facts)
    with pytest.raises(OptionError, match="no class is a thing"):
        segcore.create_task("instance", **{**facts, "things": ()})
    with pytest.raises(OptionError, match="lacks mean"):
        segcore.create_task("instance", std=(0.2,), classes=("a",), things=(True,))


def test_labels_beyond_the_things_name_their_image() -> None:
    facts = {"mean": (0.4,), "std": (0.2,), "classes": scenes.CLASSES, "things": scenes.THINGS}
    batch = {"target": [{"labels": torch.tensor([1, 3])}], "id": ["a"]}
    with pytest.raises(DataError, match=r"objects of a have labels \[3\]"):
        segcore.create_task("instance", **facts).check(batch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, dict[str, float]]:
    """Shards, a package trained for an epoch by way of the kind alone, and its last metrics."""
    folder = tmp_path_factory.mktemp("instances")
    splits = {"train": [f"train_{i:02}" for i in range(6)], "val": ["val_10", "val_11"]}
    data = scenes.write(folder / "shards", {**splits, "test": ["test_02"]})
    torch.manual_seed(0)
    options: dict[str, Any] = {**KIND.model_facts(data), **TINY}
    model = segcore.create_model("mask_rcnn", **options)
    augment = {"crop": (64, 64), "scale": (0.8, 1.25), "hflip": 0.5}
    loaders = KIND.create_loaders(data, batch_size=3, seed=0, augment=augment)
    task = KIND.create_task(data, loss="cross_entropy", class_weights="none", options={})
    *_, last = segcore.fit(task, model, *loaders, epochs=1, lr=1e-3, device="cpu")
    spec = scenes.spec("instance", "mask_rcnn", **TINY)
    return data, segcore.save_package(folder / "package", model, spec), dict(last.metrics)


def test_an_epoch_of_fit_and_its_package(trained: tuple[Any, Path, dict[str, float]]) -> None:
    data, package, metrics = trained
    assert np.isfinite(metrics["train/loss"])
    assert {"val/ap", "val/ap50", "val/ap75", "val/ar100"} <= set(metrics)
    predictor = segcore.load_package(package)
    split, targets = data.split("val"), KIND.targets(data)
    images = [split.decode(i)[0] for i in range(2)]
    both = predictor([*images, images[0][:50, :70]])
    assert [(one.height, one.width) for one in both] == [(64, 80), (64, 80), (50, 70)]
    rows = [KIND.record(one, targets.label(split.read(i)), data) for i, one in enumerate(both[:2])]
    figures = KIND.figures(KIND.records(as_table(rows), data), np.ones((1, 2)))
    for name in ("ap", "ap50", "ar100"):
        assert figures[name][0] == pytest.approx(metrics[f"val/{name}"], abs=1e-6, nan_ok=True)
    strict = KIND.create_predictor(predictor.model, predictor.spec, min_score=0.3)
    assert all((one.scores >= 0.3).all() for one in strict(images))


def test_tiles_are_taken_where_memory_is_short(
    trained: tuple[Any, Path, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor: Any = segcore.load_package(trained[1], max_memory_gib=0.1)
    image = np.tile(scenes.paint(0)[0], (6, 6, 1))
    calls: list[tuple[int, ...]] = []
    detect = predictor.network.detect

    def spy(parts: Any) -> Any:
        calls.extend(part.shape for part in parts)
        return detect(parts)

    monkeypatch.setattr(predictor.network, "detect", spy)
    found = predictor(image)[0]
    assert len(calls) > 1
    assert all(shape[0] * shape[1] < image.shape[0] * image.shape[1] for shape in calls)
    assert (found.height, found.width) == image.shape[:2]
    assert (found.boxes[:, 2:] <= [image.shape[1], image.shape[0]]).all()


def test_bf16_finds_objects_too(trained: tuple[Any, Path, dict[str, float]]) -> None:
    predictor = segcore.load_package(trained[1], precision="bf16")
    found = predictor(scenes.paint(0)[0])[0]
    assert np.isfinite(found.boxes).all()
    assert found.scores.dtype == np.float32


def test_batches_hold_lists(trained: tuple[Any, Path, dict[str, float]]) -> None:
    data = trained[0]
    _, val = KIND.create_loaders(data, batch_size=2, seed=0)
    (batch,) = val
    assert [image.shape for image in batch["image"]] == [(3, 64, 80)] * 2
    assert [len(one["labels"]) for one in batch["target"]] == [4, 0]
    assert batch["target"][0]["iscrowd"].tolist() == [0, 0, 0, 1]
    assert batch["id"] == ["val_10", "val_11"]
    unlabelled = replace(data.split("val").read(0), instances=None)
    assert not KIND.targets(data).is_labelled(unlabelled)
