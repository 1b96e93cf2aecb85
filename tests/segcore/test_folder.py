"""Own folders: splits, class names, colours, COCO files, and what a wrong layout is told."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segcore.data.labels import read_labels
from segcore.data.prepare import prepare, validate
from segcore.data.sample import Sample
from segcore.data.shards import open_shards
from segcore.datasets import DataSource, create_dataset
from segcore.datasets.base import silent
from segcore.datasets.layout import assign
from segcore.datasets.palette import make_palette, read_classes
from segcore.datasets.polygons import fill_polygon
from segcore.errors import DataError, OptionError
from segcore.inference import rle


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def add_pair(path: Path, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    save(path / "images" / f"{name}.png", rng.integers(0, 255, (12, 10, 3), dtype=np.uint8))
    save(path / "masks" / f"{name}.png", rng.integers(0, 2, (12, 10), dtype=np.uint8))


def samples_of(path: Path, **options: object) -> list[Sample]:
    source = DataSource(raw=path.parent / "raw", path=path, **options)  # type: ignore[arg-type]
    return list(create_dataset("folder", source).samples())


def test_subfolders_give_the_split(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        add_pair(tmp_path / "own", f"{split}/a", number)
    add_pair(tmp_path / "own", "train/b", 9)
    found = {sample.id: sample.split for sample in samples_of(tmp_path / "own")}
    assert found == {"train-a": "train", "val-a": "val", "test-a": "test", "b": "train"}


def test_title_is_the_name_in_the_characters_of_a_registry(tmp_path: Path) -> None:
    add_pair(tmp_path / "own data", "a", 0)
    source = DataSource(raw=tmp_path / "raw", path=tmp_path / "own data")
    assert create_dataset("folder", source).info().name == "own_data"
    titled = replace(source, options={"title": "Cells: 2nd batch/"})
    assert create_dataset("folder", titled).info().name == "Cells_2nd_batch"
    with pytest.raises(OptionError, match=r"title is '\?\?': give it a letter"):
        create_dataset("folder", replace(source, options={"title": "??"})).info()


def test_split_folders_may_lie_outside(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val")):
        add_pair(tmp_path / "own" / split, f"x{number}", number)
    found = {sample.id: sample.split for sample in samples_of(tmp_path / "own")}
    assert found == {"x0": "train", "x1": "val"}


def test_lists_give_the_split_and_leave_out_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "own"
    for number in range(5):
        add_pair(path, f"im {number}", number)
    (path / "train.txt").write_text("im 0\nim 1.png\n\n")
    (path / "val.txt").write_text("images/im 2.png\n")
    found = {sample.id: sample.split for sample in samples_of(path)}
    assert found == {"im 0": "train", "im 1": "train", "im 2": "val"}
    (path / "test.txt").write_text("im 0\n")
    with pytest.raises(DataError, match=r"im 0 is in train\.txt and in test\.txt"):
        samples_of(path)


def test_fractions_are_met_and_stable() -> None:
    keys = [("", f"s{number}") for number in range(100)]
    options = {"val_fraction": 0.15, "test_fraction": 0.2, "seed": 0}
    first = assign(keys, {}, **options)  # type: ignore[arg-type]
    assert Counter(first.values()) == {"train": 65, "val": 15, "test": 20}
    assert assign(reversed(keys), {}, **options) == first  # type: ignore[arg-type]
    more = assign([*keys, ("", "new")], {}, **options)  # type: ignore[arg-type]
    assert sum(more[key] != first[key] for key in keys) <= 2
    assert assign(keys, {}, val_fraction=0.15, test_fraction=0.2, seed=1) != first
    few = assign(keys[:4], {}, **options)  # type: ignore[arg-type]
    assert Counter(few.values()) == {"train": 2, "val": 1, "test": 1}


@pytest.mark.parametrize("count", [3, 4, 5, 7, 10])
def test_few_files_fill_every_split(count: int) -> None:
    keys = [("", f"s{number}") for number in range(count)]
    for val_fraction, test_fraction in ((0.15, 0.15), (0.01, 0.01), (0.5, 0.49)):
        options = {"val_fraction": val_fraction, "test_fraction": test_fraction}
        counts = Counter(assign(keys, {}, seed=0, **options).values())
        assert counts["val"] >= 1
        assert counts["test"] == max(1, round(count * test_fraction))
        assert counts["train"] >= 1
    none = assign(keys, {}, val_fraction=0.0, test_fraction=0.0, seed=0)
    assert Counter(none.values()) == {"train": count}


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["a.jpg", "b.jpg"], ["a_mask.png", "b_mask.png"]),
        (["a1.jpg", "b1.jpg"], ["a1_label.png", "b1_label.png"]),
        (["x.jpg", "xy.jpg"], ["xGT.png", "xyGT.png"]),
        (["a_sat.jpg", "b_sat.jpg"], ["a_mask.png", "b_mask.png"]),
        (["a_sat.jpg", "b_sat.jpg"], ["a.png", "b.png"]),
        (["21_training.tif", "22_training.tif"], ["21_manual1.gif", "22_manual1.gif"]),
        (["a.jpg", "b.jpg", "c.jpg"], ["a_gt.png", "b_gt.png"]),
        (["d/a.jpg", "d/b.jpg"], ["d/a_seg.png", "d/b_seg.png"]),
        (["only.jpg"], ["only_mask.png"]),
        (["img_1.jpg", "img_12.jpg"], ["mask_1.png", "mask_12.png"]),
        (["IMG001.jpg", "IMG002.jpg"], ["label001.png", "label002.png"]),
        (["1.jpg", "2.jpg", "3.jpg"], ["mask-1.png", "mask-2.png"]),
        (["d/im_1.jpg", "e/im_1.jpg"], ["d/gt_1.png", "e/gt_1.png"]),
    ],
)
def test_masks_with_a_suffix_or_prefix_find_their_images(
    tmp_path: Path, images: list[str], masks: list[str]
) -> None:
    path = tmp_path / "own"
    for kind, names in (("images", images), ("masks", masks)):
        for name in names:
            save(path / kind / name, np.zeros((4, 4), np.uint8))
    found = {(Path(str(s.image)).name, s.mask and Path(str(s.mask)).name) for s in samples_of(path)}
    expected = [Path(name).name for name in masks] + [None] * (len(images) - len(masks))
    assert found == set(zip((Path(name).name for name in images), expected, strict=True))


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["a.jpg", "b.jpg"], ["c_mask.png", "d_mask.png"]),
        (["a1.jpg", "b1.jpg"], ["a2.png", "b2.png"]),
        (["2019_a.jpg", "2019_b.jpg"], ["2020_a.png", "2020_b.png"]),
        (["img_1.jpg", "pic_2.jpg"], ["mask_1.png", "mask_2.png"]),
        (["a.jpg", "b.jpg"], ["a_mask.png", "b_gt.png"]),
    ],
)
def test_masks_of_other_stems_are_one_message(
    tmp_path: Path, images: list[str], masks: list[str]
) -> None:
    for kind, names in (("images", images), ("masks", masks)):
        for name in names:
            save(tmp_path / "own" / kind / name, np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match=rf"no image of .* has a mask.*{masks[0]}.*Looked for"):
        samples_of(tmp_path / "own")


@pytest.mark.parametrize(
    ("images", "masks"),
    [("JPEGImages", "SegmentationClass"), ("imgs", "gt"), ("Images", "Labels"), ("image", "mask")],
)
def test_folders_may_have_other_names(tmp_path: Path, images: str, masks: str) -> None:
    path = tmp_path / "own"
    for number in range(3):
        add_pair(path, f"s{number}", number)
    (path / "images").rename(path / images)
    (path / "masks").rename(path / masks)
    (path / "train.txt").write_text(f"{images}/s0.png\ns1\n")
    found = samples_of(path)
    assert [sample.id for sample in found] == ["s0", "s1"]
    assert found[0].mask == path / masks / "s0.png"
    (path / masks / "s1.png").unlink()
    (path / images / "s0.png").unlink()
    assert [sample.image for sample in samples_of(path)] == [
        path / images / "s0.png", path / images / "s1.png",
    ]  # fmt: skip


def test_other_names_inside_split_folders_and_beside_lists(tmp_path: Path) -> None:
    path = tmp_path / "own"
    for number, split in enumerate(("train", "val")):
        add_pair(path / split, f"x{number}", number)
        (path / split / "masks").rename(path / split / "labels")
        (path / split / "gt").mkdir()  # without a picture: no masks
        (path / split / "gt" / "boxes.txt").write_text("0 1 2 3 4")
    assert {s.id: s.split for s in samples_of(path)} == {"x0": "train", "x1": "val"}
    save(path / "gt" / "x0.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match="no masks/ but gt/ and labels/: rename"):
        samples_of(path)


def test_unlabelled_images_need_no_mask(tmp_path: Path) -> None:
    path = tmp_path / "own"
    for number in range(6):
        add_pair(path, f"s{number}", number)
    save(path / "images" / "unlabelled" / "u.png", np.zeros((5, 5, 3), np.uint8))
    (path / "masks" / "s5.png").unlink()
    (path / "unlabelled.txt").write_text("s5\n")
    source = DataSource(raw=tmp_path / "raw", path=path)
    validation = prepare(create_dataset("folder", source), tmp_path / "out", workers=1)
    assert validation.faults == ()
    shards = open_shards(tmp_path / "out")
    assert shards.splits == {"train": 3, "val": 1, "test": 1, "unlabelled": 2}
    assert shards.split("unlabelled").decode(1)[1] is None


def test_names_come_from_options_then_file_then_values(tmp_path: Path) -> None:
    path = tmp_path / "My data!"
    add_pair(path, "a", 0)
    source = DataSource(raw=tmp_path / "raw", path=path)
    info = create_dataset("folder", source).info()
    assert (info.name, info.classes) == ("My_data", ("class_0", "class_1"))
    (path / "classes.txt").write_text("road\nsidewalk way\n")
    assert create_dataset("folder", source).info().classes == ("road", "sidewalk way")
    named = replace(source, classes=("x", "y", "z"))
    assert create_dataset("folder", named).info().classes == ("x", "y", "z")


def test_colour_pictures_are_mapped_by_classes_txt(tmp_path: Path) -> None:
    path = tmp_path / "own"
    colors = np.array([[10, 20, 30], [200, 0, 0]], np.uint8)
    expected = np.random.default_rng(0).integers(0, 2, (12, 10))
    for number in range(3):
        add_pair(path, f"s{number}", number)
        save(path / "masks" / f"s{number}.png", colors[expected])
    (path / "classes.txt").write_text("road 10 20 30\nbig car #c80000\n")
    dataset = create_dataset("folder", DataSource(raw=tmp_path / "raw", path=path))
    info = dataset.info()
    assert info.classes == ("road", "big car")
    assert info.palette == ((10, 20, 30), (200, 0, 0))
    prepare(dataset, tmp_path / "out", workers=1)
    assert (open_shards(tmp_path / "out").split("train").decode(0)[1] == expected).all()
    save(path / "masks" / "s1.png", colors[expected] + np.uint8(1))
    faults = [f for f in validate(dataset, workers=1).faults if f.severity == "error"]
    assert [(f.fault, f.value) for f in faults] == [("unknown mask colour", "(11,21,31) (201,1,1)")]


def test_source_json_follows_every_file(tmp_path: Path) -> None:
    path = tmp_path / "own"
    add_pair(path, "a", 0)
    dataset = create_dataset("folder", DataSource(raw=tmp_path / "raw", path=path))
    listing = tmp_path / "raw" / "source.json"
    seen = set()
    for change in (
        lambda: None,
        lambda: add_pair(path, "a", 1),
        lambda: (path / "val.txt").write_text("a"),
        lambda: (path / "masks" / "a.png").unlink(),
    ):
        change()
        dataset = create_dataset("folder", DataSource(raw=tmp_path / "raw", path=path))
        dataset.download(silent)
        first = listing.read_bytes()
        dataset.download(silent)
        assert listing.read_bytes() == first
        seen.add(first)
    assert len(seen) == 4
    assert json.loads(listing.read_text())["path"] == str(path)
    assert [p.name for p in (tmp_path / "raw").iterdir()] == ["source.json"]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        ((), "is no folder"),
        (("x",), "has no images/"),
        (("images",), "neither masks/ nor annotations.json"),
        (("images", "masks"), "holds no image"),
    ],
)
def test_wrong_layout_is_said(tmp_path: Path, make: tuple[str, ...], why: str) -> None:
    for name in make:
        (tmp_path / "own" / name).mkdir(parents=True)
    with pytest.raises(DataError, match=why):
        samples_of(tmp_path / "own")
    with pytest.raises(DataError, match=r"data\.path is not set"):
        create_dataset("folder", DataSource(raw=tmp_path))


def test_coco_polygons_and_runs_become_masks(tmp_path: Path) -> None:
    path = tmp_path / "own"
    for number in range(3):
        save(path / "images" / f"{number}.png", np.full((8, 10, 3), number, np.uint8))
    block = np.zeros((8, 10), bool)
    block[4:7, 1:5] = True
    runs = [len(list(g)) for g in _groups(block.ravel(order="F").tolist())]
    square = [2.0, 1.0, 6.0, 1.0, 6.0, 4.0, 2.0, 4.0]
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 7, "segmentation": [square]},
        {"id": 2, "image_id": 1, "category_id": 3, "iscrowd": 1,
         "segmentation": {"counts": runs, "size": [8, 10]}},
        {"id": 3, "image_id": 2, "category_id": 3,
         "segmentation": {"counts": rle.encode(block), "size": [8, 10]}},
    ]  # fmt: skip
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 8, "width": 10} for n in range(3)],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "car"}, {"id": 3, "name": "cat"}],
    }
    (path / "annotations.json").write_text(json.dumps(content))
    (path / "train.txt").write_text("0\n1\n2\n")
    dataset = create_dataset("folder", DataSource(raw=tmp_path / "raw", path=path))
    info = dataset.info()
    assert (info.classes, info.tasks) == (("background", "cat", "car"), ("semantic", "instance"))
    found = [sample.resolve()[0].mask for sample in dataset.samples()]
    masks = [read_labels(mask, info) for mask in found if isinstance(mask, bytes)]
    expected = np.zeros((8, 10), np.uint8)
    expected[1:4, 2:6] = 2
    expected[4:7, 1:5] = 1
    assert (masks[0] == 0).all()
    assert (masks[1] == expected).all()
    prepare(dataset, tmp_path / "out", workers=1, size=(16, 20))
    row = open_shards(tmp_path / "out").split("train").read(1)
    assert row.instances is not None
    assert [(i.category, i.bbox, i.area, i.iscrowd) for i in row.instances] == [
        (2, (4.0, 2.0, 8.0, 6.0), 48.0, False),
        (1, (2.0, 8.0, 8.0, 6.0), 48.0, True),
    ]
    (path / "annotations.json").write_text("[]")
    with pytest.raises(DataError, match="no COCO annotation file"):
        samples_of(path)


def _groups(values: list[bool]) -> Iterator[list[bool]]:
    """Runs of equal values, the first of False."""
    run: list[bool] = []
    current = False
    for value in values:
        if value != current:
            yield run
            run, current = [], value
        run.append(value)
    yield run


def test_polygon_fills_pixels_whose_centre_is_inside() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(-3, 15, (7, 2))
    rows, columns = np.mgrid[0:11, 0:13] + 0.5
    expected = np.zeros((11, 13), bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, 1, axis=0), strict=True):
        spans = (y0 <= rows) != (y1 <= rows)
        expected ^= spans & (columns > x0 + (rows - y0) * (x1 - x0) / (y1 - y0))
    assert (fill_polygon(corners, (11, 13)) == expected).all()


def test_palette_and_class_list() -> None:
    assert len(set(make_palette(60))) == 60
    assert make_palette(3) == make_palette(60)[:3]


@pytest.mark.parametrize(
    ("text", "why"),
    [("a\na\n", "name a twice"), ("a 1 2 3\nb\n", "2 names and 1 colours"), ("\n", "no class")],
)
def test_wrong_class_list_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=why):
        read_classes(tmp_path / "classes.txt")
