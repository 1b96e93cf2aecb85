"""Own folders with objects: every layout gives the same instances, and faults are named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segcore.data.prepare import Validation, prepare, validate
from segcore.data.sample import Instance, tasks_of
from segcore.data.shards import open_shards
from segcore.datasets import DataSource, create_dataset
from segcore.errors import DataError, OptionError
from segcore.inference import rle

SIZE = (20, 24)
STEMS = ("a", "b", "c")


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def ids_of(place: int) -> np.ndarray:
    """Objects 1.. of image `place`: blocks, the first two side by side."""
    ids = np.zeros(SIZE, np.uint16)
    ids[2:6, 3:8], ids[2:6, 8:10] = 1, 2
    ids[10 : 14 + place, 1:5] = 3
    if place:
        ids[18, 20] = 4
    return ids


def classes_of(place: int) -> np.ndarray:
    """0 ground, 1 wall (stuff), 2 for odd objects, 3 for even ones; a void border."""
    mask = np.zeros(SIZE, np.uint8)
    mask[:, 12:] = 1
    ids = ids_of(place)
    mask[ids > 0] = 2 + (ids[ids > 0] + 1) % 2
    mask[0] = 255
    return mask


def draw_images(path: Path, pattern: str = "images/{}.png") -> None:
    for place, stem in enumerate(STEMS):
        pixels = np.random.default_rng(place).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        save(path / pattern.format(stem), pixels)
    for split, stem in zip(("train", "val", "test"), STEMS, strict=True):
        (path / f"{split}.txt").write_text(stem + "\n")


def object_files(path: Path) -> None:
    draw_images(path, "{0}/images/{0}.png")
    for place, stem in enumerate(STEMS):
        for number in np.unique(ids_of(place))[1:]:
            mask = np.where(ids_of(place) == number, 255, 0).astype(np.uint8)
            save(path / stem / "masks" / f"{number}.png", mask)


def id_maps(path: Path) -> None:
    draw_images(path)
    for place, stem in enumerate(STEMS):
        save(path / "instances" / f"{stem}.png", ids_of(place) * np.uint16(300))


def deep_masks(path: Path) -> None:
    draw_images(path)
    for place, stem in enumerate(STEMS):
        save(path / "masks" / f"{stem}.png", ids_of(place))


def voc(path: Path) -> None:
    draw_images(path, "JPEGImages/{}.jpg")
    for place, stem in enumerate(STEMS):
        for kind, values in (("Class", classes_of(place)), ("Object", ids_of(place))):
            void = classes_of(place) == 255
            image = Image.fromarray(np.where(void, 255, values).astype(np.uint8))
            image.putpalette(list(range(256)) * 3)
            (path / f"Segmentation{kind}").mkdir(exist_ok=True)
            image.save(path / f"Segmentation{kind}" / f"{stem}.png")
    lists = path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split in ("train", "val", "test"):
        (path / f"{split}.txt").rename(lists / f"{split}.txt")


def masks_and_ids(path: Path) -> None:
    draw_images(path)
    for place, stem in enumerate(STEMS):
        save(path / "masks" / f"{stem}.png", classes_of(place))
        save(path / "instances" / f"{stem}.png", ids_of(place))


def coco_content(place: int, image: int) -> dict[str, Any]:
    """Outlines of the objects in COCO's form; the third as run lengths, a crowd."""
    ids = ids_of(place)
    annotations = []
    for number in np.unique(ids)[1:].tolist():
        ys, xs = np.nonzero(ids == number)
        x0, y0, x1, y1 = (int(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
        shape: Any = [[x0, y0, x1, y0, x1, y1, x0, y1]]
        if number == 3:
            shape = {"counts": rle.encode(ids == 3), "size": list(SIZE)}
        annotations.append(
            {"id": image * 10 + number, "image_id": image, "iscrowd": int(number == 3),
             "category_id": 7, "segmentation": shape}
        )  # fmt: skip
    entry = {"id": image, "file_name": f"{STEMS[place]}.png", "height": 20, "width": 24}
    return {"images": [entry], "annotations": annotations,
            "categories": [{"id": 7, "name": "object"}]}  # fmt: skip


def coco(path: Path) -> None:
    """COCO's own names: annotations/instances_train2017.json, train2017/x.png."""
    for place, (split, stem) in enumerate(zip(("train", "val", "test"), STEMS, strict=True)):
        content = coco_content(place, place + 1)
        (path / "annotations").mkdir(parents=True, exist_ok=True)
        (path / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
        (path / "annotations/captions_train2017.json").write_text("{}")
        pixels = np.random.default_rng(place).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        save(path / f"{split}2017" / f"{stem}.png", pixels)


def panoptic(path: Path) -> None:
    """Segments: 1000 + class for stuff, 66000 + id for things; void where the mask is void."""
    draw_images(path)
    images, annotations = [], []
    for place, stem in enumerate(STEMS):
        mask, ids = classes_of(place), ids_of(place)
        numbers = np.where(ids > 0, 66000 + ids.astype(int), 1000 + mask.astype(int))
        numbers[mask == 255] = 0
        png = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1)
        save(path / "panoptic" / f"{stem}.png", png.astype(np.uint8))
        segments = [
            {
                "id": n,
                "category_id": 10 * int(mask[numbers == n][0]),
                "iscrowd": int(n == 66003),
            }
            for n in np.unique(numbers[numbers > 0]).tolist()
        ]
        images.append({"id": place, "file_name": f"{stem}.png", "height": 20, "width": 24})
        annotations.append(
            {"image_id": place, "file_name": f"{stem}.png", "segments_info": segments}
        )
    names = ("ground", "wall", "odd", "even")
    categories = [{"id": 10 * i, "name": n, "isthing": int(i > 1)} for i, n in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (path / "panoptic.json").write_text(json.dumps(content))


def check(path: Path, **options: Any) -> Validation:
    source = DataSource(raw=path.parent / "raw", path=path, **options)
    return validate(create_dataset("folder", source), workers=1)


def objects_of(instances: tuple[Instance, ...] | None) -> set[tuple[int, bytes]]:
    """(category, mask) of each."""
    found = [(i.category, rle.decode(i.counts, *SIZE).tobytes()) for i in instances or ()]
    assert len(set(found)) == len(found)
    return set(found)


@pytest.mark.parametrize("make", [object_files, id_maps, deep_masks, coco])
def test_layouts_of_one_thing_give_the_same(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "own")
    source = DataSource(raw=tmp_path / "raw", path=tmp_path / "own")
    dataset = create_dataset("folder", source)
    validation = prepare(dataset, tmp_path / "out", workers=1)
    assert [f for f in validation.faults if f.fault != "16-bit masks"] == []
    shards = open_shards(tmp_path / "out")
    assert (shards.tasks, shards.task) == (("semantic", "instance"), "semantic")
    assert (shards.classes, shards.info.things) == (("background", "object"), (False, True))
    assert shards.splits == {"train": 1, "val": 1, "test": 1}
    for place, split in enumerate(("train", "val", "test")):
        row = shards.split(split).read(0)
        ids = ids_of(place)
        expected = {(1, (ids == n).tobytes()) for n in np.unique(ids)[1:]}
        assert objects_of(row.instances) == expected
        assert [i.iscrowd for i in row.instances or ()].count(True) == (make is coco)
        _, mask = shards.split(split).decode(0)
        assert mask is not None
        assert (mask == (ids > 0)).all()
    dataset.download()
    listed = json.loads((tmp_path / "raw/source.json").read_text())["files"]
    assert len(listed) >= 6


@pytest.mark.parametrize("make", [voc, masks_and_ids, panoptic])
def test_layouts_of_things_and_stuff_give_the_same(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "own")
    dataset = create_dataset("folder", DataSource(raw=tmp_path / "raw", path=tmp_path / "own"))
    validation = prepare(dataset, tmp_path / "out", workers=1)
    assert validation.faults == ()
    shards = open_shards(tmp_path / "out")
    assert shards.tasks == ("semantic", "instance", "panoptic")
    assert shards.info.things == (False, False, True, True)
    assert (shards.classes[2] == "odd") == (make is panoptic)
    for place, split in enumerate(("train", "val", "test")):
        row = shards.split(split).read(0)
        ids = ids_of(place)
        expected = {(2 + int(n + 1) % 2, (ids == n).tobytes()) for n in np.unique(ids)[1:]}
        assert objects_of(row.instances) == expected
        assert [i.iscrowd for i in row.instances or ()].count(True) == (make is panoptic)
        _, mask = shards.split(split).decode(0)
        assert mask is not None
        assert (mask == classes_of(place)).all()


def test_objects_are_in_the_fingerprint(tmp_path: Path) -> None:
    object_files(tmp_path / "own")
    (tmp_path / "own/train.txt").write_text("a\nb")
    (tmp_path / "own/val.txt").write_text("c")
    (tmp_path / "own/test.txt").unlink()
    source = DataSource(raw=tmp_path / "raw", path=tmp_path / "own")
    sides = []
    for size in (None, (40, 48)):
        prepare(create_dataset("folder", source), tmp_path / "out", workers=1, size=size)
        found = open_shards(tmp_path / "out").fingerprint["instances"]
        assert found["images"] == 2
        assert found["per_image"] == {"median": 3.5, "p95": 3.95, "max": 4}
        assert found["touching_share"] == 1
        sides.append(found["side_px"])
    assert (sides[0]["min"], sides[0]["p50"], sides[0]["max"]) == (1, 4, 4.472)
    assert (sides[1]["min"], sides[1]["p50"], sides[1]["max"]) == (2, 8, 8.944)


def test_classes_and_layout_may_be_named(tmp_path: Path) -> None:
    id_maps(tmp_path / "own")
    validation = check(tmp_path / "own", classes=("dish", "cell"))
    assert validation.info.classes == ("dish", "cell")
    assert validation.info.tasks == ("semantic", "instance", "panoptic")
    with pytest.raises(DataError, match="3 classes are named"):
        check(tmp_path / "own", classes=("a", "b", "c"))
    with pytest.raises(OptionError, match="layout is 'x': use one of masks, ids"):
        check(tmp_path / "own", options={"layout": "x"})
    masks_and_ids(tmp_path / "both")
    plain = check(tmp_path / "both", options={"layout": "masks"})
    assert plain.info.tasks == ("semantic",)
    named = check(tmp_path / "both", options={"things": ["class_2"]})
    assert named.info.things == (False, False, True, False)
    assert {f.fault for f in named.faults if f.severity == "error"} == {"object of a stuff class"}
    with pytest.raises(OptionError, match="things names 'car', the classes are class_0"):
        check(tmp_path / "both", options={"things": ["car"]})


def test_deep_masks_of_few_classes_stay_masks(tmp_path: Path) -> None:
    draw_images(tmp_path / "own")
    for place, stem in enumerate(STEMS):
        save(tmp_path / "own/masks" / f"{stem}.png", (classes_of(place) % 3).astype(np.uint16))
    assert check(tmp_path / "own").info.tasks == ("semantic",)
    deep_masks(tmp_path / "ids")
    (tmp_path / "ids/classes.txt").write_text("p\nq\nr\ns\nt\n")
    assert check(tmp_path / "ids").info.tasks == ("semantic",)
    assumed = check(tmp_path / "own", options={"layout": "ids"}).faults
    assert all(fault.severity == "warning" for fault in assumed)


def test_tasks_follow_from_things_and_stuff() -> None:
    assert tasks_of(("a", "b"), (), instances=False) == ("semantic",)
    assert tasks_of(("Background", "b"), (False, True), instances=True) == ("semantic", "instance")
    assert tasks_of(("sky", "b"), (False, True), instances=True)[2:] == ("panoptic",)
    assert tasks_of(("a", "b"), (True, True), instances=True) == ("semantic", "instance")


def edit_coco(change: Callable[[list[dict[str, Any]]], None]) -> Callable[[Path], str]:
    """Spoil the first annotation of the training images; returns the file."""

    def spoil(path: Path) -> str:
        coco(path)
        file = path / "annotations/instances_train2017.json"
        content = json.loads(file.read_text())
        change(content["annotations"])
        file.write_text(json.dumps(content))
        return str(file)

    return spoil


def edit_panoptic(change: Callable[[list[dict[str, Any]]], None]) -> Callable[[Path], str]:
    def spoil(path: Path) -> str:
        panoptic(path)
        content = json.loads((path / "panoptic.json").read_text())
        change(content["annotations"][0]["segments_info"])
        (path / "panoptic.json").write_text(json.dumps(content))
        return str(path / "panoptic/a.png")

    return spoil


def edit_file(make: Callable[[Path], None], name: str, values: Any) -> Callable[[Path], str]:
    def spoil(path: Path) -> str:
        make(path)
        (path / name).unlink(missing_ok=True)
        if values is not None:
            save(path / name, values)
        return str(path / name)

    return spoil


def shape(value: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda annotations: annotations[0].update(segmentation=value)


FAULTS: list[tuple[str, Callable[[Path], str], str, str, str]] = [
    ("two points", edit_coco(shape([[1, 1, 2, 2]])),
     "polygon with fewer than 3 points", "annotation 11 of a.png: 2 corners", "3 corners"),
    ("words", edit_coco(shape([["x", 1, 2, 2, 3, 3]])), "unreadable polygon", "'x'", "3 corners"),
    ("other size", edit_coco(shape({"counts": [5, 5], "size": [2, 5]})),
     "run lengths of another size", "size [2, 5], image [20, 24]", "encode the mask at"),
    ("too few", edit_coco(shape({"counts": [5, 5], "size": [20, 24]})),
     "damaged run lengths", "10 pixels of 480", "encode the mask at"),
    ("zeros", edit_coco(shape({"counts": [480], "size": [20, 24]})),
     "empty object", "no pixel", "draw it, or remove it"),
    ("none", edit_coco(shape([])), "empty object", "no polygon", "draw its outline"),
    ("outside", edit_coco(shape([[30, 1, 40, 1, 40, 9]])),
     "object outside the picture", "x 30..40, y 1..9; image 20x24", "correct or remove"),
    ("same id", edit_coco(lambda a: a[1].update(id=11)),
     "duplicate object id", "annotation 11 of a.png", "an id of its own"),
    ("category", edit_coco(lambda a: a[0].update(category_id=9)),
     "class id out of range", "category_id 9", "use one of 7"),
    ("segment twice", edit_panoptic(lambda s: s.append(s[0])),
     "duplicate object id", "segment 1000", "an id of its own"),
    ("segment gone", edit_panoptic(lambda s: s.append({"id": 5, "category_id": 10})),
     "empty object", "segment 5", "remove it from segments_info"),
    ("no segment", edit_panoptic(lambda s: s.pop(0)),
     "unknown segment id", "1000", "list it in segments_info"),
    ("segment class", edit_panoptic(lambda s: s[0].update(category_id=3)),
     "class id out of range", "category_id 3 of segment 1000", "use one of 0, 10"),
    ("no png", edit_file(panoptic, "panoptic/a.png", None),
     "unreadable objects", "No such file", "intact PNG"),
    ("blank file", edit_file(object_files, "a/masks/1.png", np.zeros(SIZE, np.uint8)),
     "empty object", "no pixel", "remove the file"),
    ("small file", edit_file(object_files, "a/masks/1.png", np.ones((3, 3), np.uint8)),
     "size mismatch", "mask 3x3, image 20x24", "same height and width"),
    ("small ids", edit_file(masks_and_ids, "instances/a.png", np.ones((3, 3), np.uint16)),
     "size mismatch", "ids 3x3, mask 20x24", "same height and width"),
    ("small ids alone", edit_file(id_maps, "instances/a.png", np.ones((3, 3), np.uint16)),
     "size mismatch", "mask 3x3, image 20x24", "same height and width"),
    ("no ids", edit_file(masks_and_ids, "instances/a.png", None),
     "missing objects", "No such file", "add its id map"),
    ("colour ids", edit_file(masks_and_ids, "instances/a.png", np.ones((*SIZE, 4), np.uint8)),
     "object of a stuff class", "class_", "things"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "fault", "value", "fix"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS]
)
def test_fault_is_named(
    tmp_path: Path, spoil: Callable[[Path], str], fault: str, value: str, fix: str
) -> None:
    file = spoil(tmp_path / "own")
    validation = check(tmp_path / "own")
    errors = [f for f in validation.faults if f.severity == "error"]
    assert {(f.file, f.fault, f.split) for f in errors} == {(file, fault, "train")}
    assert value in errors[0].value
    assert fix in errors[0].fix
    assert (validation.rejected, len(validation.samples)) == (1, 2)
    assert f"{file},train,{fault}" in validation.csv().decode()


def test_what_can_be_kept_is_only_a_warning(tmp_path: Path) -> None:
    def spoil(annotations: list[dict[str, Any]]) -> None:
        annotations[0]["segmentation"] = [[1, 1, 1.2, 1, 1.2, 1.2]]
        annotations[1]["segmentation"] = [[20, 1, 40, 1, 40, 9, 20, 9]]
        annotations.append({**annotations[1], "id": 99, "segmentation": [[20, 2, 24, 2, 24, 9]]})
        annotations.append({"id": 98, "image_id": 77, "category_id": 7, "segmentation": []})

    edit_coco(spoil)(tmp_path / "own")
    validation = check(tmp_path / "own")
    faults = {f.fault: (f.value, f.severity) for f in validation.faults}
    assert faults["object smaller than a pixel"][1] == "warning"
    assert "x 20..40" in faults["object partly outside the picture"][0]
    assert "2 of 2 objects share" in faults["overlapping objects"][0]
    assert faults["annotations of no listed image"][0].startswith("1 in ")
    assert validation.rejected == 0
    sample, _ = next(s for s in validation.samples if s.id == "a").resolve()
    assert [i.iscrowd for i in sample.instances or ()] == [False, True, False]
