"""Instance segmentation as a kind: targets, figures, and a fit through it."""

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

import segcore
from segcore.data.objects import instance_of
from segcore.data.transforms import Augmentation
from segcore.errors import DataError, OptionError
from segcore.inference import rle
from segcore.metrics import AverageRecall, BowlScore, MeanAveragePrecision
from segcore.tasks import get_kind
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


def augmentation(**options: Any) -> Augmentation:
    return Augmentation(ignore_index=255, mean=(0.4, 0.4, 0.4), **options)


@given(seed=st.integers(0, 500), count=st.integers(0, 12))
@settings(max_examples=25, deadline=None)
def test_layers_hide_nothing(seed: int, count: int) -> None:
    objects = scenes.label(seed, count)
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

    objects, options = scenes.label(seed), augmentation(**CHANGES[change])
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
    return as_table(
        [KIND.record(scenes.prediction(seed), scenes.label(seed), spec) for seed in seeds]
    )


def as_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table({n: pa.array([one[n] for one in rows], t) for n, t in KIND.record_columns})


def test_figures_equal_the_metrics_of_masks() -> None:
    spec, seeds = scenes.spec("instance", "mask_rcnn"), range(6)
    records = KIND.records(table_of(seeds), spec)
    figures = KIND.figures(records, np.ones((1, len(seeds))))
    metrics: list[Any] = [MeanAveragePrecision("segm"), AverageRecall("segm"), BowlScore()]
    targets = ObjectTargets(scenes.THINGS)
    for seed in seeds:
        guess, objects = scenes.prediction(seed), scenes.label(seed)
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
