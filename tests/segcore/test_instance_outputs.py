"""What predicted objects become: masks of the image, files, served arrays, pictures."""

import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import object_scenes as scenes
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from PIL import Image

from segcore.datasets.polygons import fill_polygon
from segcore.inference import rle
from segcore.tasks import get_kind
from segcore.tasks.contours import polygons
from segcore.tasks.instance import InstancePrediction
from segcore.tasks.instance.detections import compress, join
from segcore.tasks.instance.drawing import Shape, color_of, contour, draw
from segcore.tasks.instance.pictures import FALSE, MISSED
from segcore.tasks.instance.targets import ObjectLabel

KIND = get_kind("instance")


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
    found = [scenes.prediction(seed) for seed in range(3)]
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
    spec, found = scenes.spec("instance", "mask_rcnn"), scenes.prediction(1)
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
    found = [scenes.prediction(seed, count) for seed, count in ((0, 8), (1, 0), (2, 3))]
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
