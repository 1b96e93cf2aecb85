"""Published datasets: miniatures in their layouts are read as their own tools read them."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import published_scenes as scenes
import pytest
from PIL import Image

from segcore.data.prepare import prepare
from segcore.data.shard_format import Row
from segcore.data.shards import ShardedDataset, open_shards
from segcore.datasets import DataSource, create_dataset
from segcore.inference import rle

Labelled = dict[str, tuple[Row, np.ndarray]]


def read(
    name: str, path: Path, raw: Path, rejected: int = 0, **options: Any
) -> tuple[ShardedDataset, Labelled]:
    """Shards of an unpacked miniature: the dataset, and each row with its mask by id."""
    source = DataSource(
        raw=raw / "raw", path=path, val_fraction=0.34, options={"complete": False, **options}
    )
    dataset = create_dataset(name, source)
    dataset.download()
    samples = list(dataset.samples())
    assert pickle.loads(pickle.dumps(samples)) == samples  # worker processes read them
    validation = prepare(dataset, raw / "shards", workers=1)
    assert not [f for f in validation.faults if f.severity == "error"]
    shards = open_shards(raw / "shards")
    rows: Labelled = {}
    for split in shards.splits:
        rows_of = shards.split(split)
        for index in range(len(rows_of)):
            row = rows_of.read(index)
            mask = rows_of.decode(index)[1]
            assert mask is not None
            rows[row.id] = (row, mask)
    return shards, rows


def masks_of(row: Row) -> list[tuple[int, bool, bytes]]:
    """(class, crowd, mask) of each object, in an order of their own."""
    assert row.instances is not None
    found = [
        (i.category, i.iscrowd, rle.decode(i.counts, row.height, row.width).tobytes())
        for i in row.instances
    ]
    return sorted(found)


def test_voc_is_read_as_torchvision_does(tmp_path: Path) -> None:
    from torchvision.datasets import VOCSegmentation

    train, val = [f"2007_00000{i}" for i in range(3)], ["2008_000009"]
    scenes.write_voc(tmp_path, train, val, [])
    shards, rows = read("voc2012", tmp_path, tmp_path)
    assert shards.splits == {"train": 2, "val": 1, "test": 1}
    assert (shards.num_classes, shards.tasks) == (21, ("semantic", "instance"))
    assert shards.palette[15] == (192, 128, 128)  # person
    for split, names in (("train", train), ("val", val)):
        theirs = VOCSegmentation(str(tmp_path), year="2012", image_set=split)
        for place, name in enumerate(names):
            row, mask = rows[name]
            assert (mask == np.asarray(theirs[place][1])).all()
            assert (mask == 255).any()
            ids, classes = scenes.objects_of(name)
            inner = np.where(mask == 255, 0, ids)
            wanted = [(c, False, (inner == i).tobytes()) for i, c in enumerate(classes, start=1)]
            assert masks_of(row) == sorted(wanted)


def test_sbd_is_read_as_torchvision_does(tmp_path: Path) -> None:
    from torchvision.datasets import SBDataset

    train, val = [f"2008_00000{i}" for i in range(3)], ["2009_000001"]
    folder = tmp_path / "benchmark_RELEASE" / "dataset"
    scenes.write_sbd(folder, train, val)
    shards, rows = read("sbd", tmp_path, tmp_path)
    assert shards.splits == {"train": 2, "val": 1, "test": 1}
    for split, names in (("train", train), ("val", val)):
        theirs = SBDataset(str(folder), image_set=split, mode="segmentation")
        for place, name in enumerate(names):
            row, mask = rows[name]
            assert (mask == np.asarray(theirs[place][1])).all()
            ids, classes = scenes.objects_of(name)
            wanted = [(c, False, (ids == i).tobytes()) for i, c in enumerate(classes, start=1)]
            assert masks_of(row) == sorted(wanted)


def test_voc_with_sbd_leaves_its_validation_set_out(tmp_path: Path) -> None:
    train, val = ["2007_000001", "2007_000002"], ["2007_000003"]
    scenes.write_voc(tmp_path, train, val, ["2008_000001", "2008_000002"])
    sbd = tmp_path / "SBD"
    scenes.write_sbd(sbd, [*val, "2008_000001", train[0]], ["2008_000002"])
    sbd.rename(tmp_path / "VOCdevkit" / "SBD")
    shards, rows = read("voc2012", tmp_path, tmp_path, sbd=True)
    assert sum(shards.splits.values()) == 5
    assert [rows[name][0].id for name in val] == shards.split("test").ids
    assert (rows[train[0]][1] == 255).any()  # VOC's own mask, with its border
    ids, classes = scenes.objects_of("2008_000002")
    assert (rows["2008_000002"][1] == scenes.by_id(ids, classes)).all()


def test_nyu_maps_lose_one_and_void_is_ignored(tmp_path: Path) -> None:
    from scipy.io import loadmat

    scenes.write_nyu(tmp_path)
    shards, rows = read("nyuv2", tmp_path, tmp_path)
    assert shards.splits == {"train": 2, "val": 1, "test": 1}
    assert (shards.num_classes, shards.classes[36], shards.tasks) == (40, "bag", ("semantic",))
    for name, (row, mask) in rows.items():
        stored = loadmat(tmp_path / f"nyud/segmentation/{name}.mat")["segmentation"]
        assert (mask == (stored.astype(np.uint8) - np.uint8(1))).all()  # as FCN's layer does
        assert row.instances is None


def test_cityscapes_is_read_as_torchvision_and_its_scripts_do(tmp_path: Path) -> None:
    from torchvision.datasets import Cityscapes

    scenes.write_cityscapes(tmp_path)
    shards, rows = read("cityscapes", tmp_path, tmp_path)
    assert shards.splits == {"train": 4, "val": 2, "test": 2}  # val is one whole city
    assert shards.tasks == ("semantic", "instance", "panoptic")
    assert len({name.split("_")[0] for name in shards.split("val").ids}) == 1
    train_id = {c.id: c.train_id for c in Cityscapes.classes}
    names = {c.train_id: (c.name, c.color) for c in Cityscapes.classes if 0 <= c.train_id < 255}
    assert [names[i] for i in range(19)] == list(zip(shards.classes, shards.palette, strict=True))
    things = {c.train_id for c in Cityscapes.classes if c.has_instances and not c.ignore_in_eval}
    assert {index for index, thing in enumerate(shards.things) if thing} == things
    for split in ("train", "val"):
        theirs = Cityscapes(str(tmp_path), split=split, target_type=["semantic", "instance"])
        for place, file in enumerate(theirs.images):
            labels, ids = map(np.asarray, theirs[place][1])
            row, mask = rows[Path(file).name.removesuffix("_leftImg8bit.png")]
            assert (mask == np.vectorize(train_id.get)(labels)).all()
            assert masks_of(row) == sorted(cityscapes_segments(ids, train_id, things))


def cityscapes_segments(
    ids: np.ndarray, train_id: dict[int, int], things: set[int]
) -> list[tuple[int, bool, bytes]]:
    """Things by the rule of createPanopticImgs: ids below 1000 are crowds, the ignored are out."""
    found = []
    for number in np.unique(ids).tolist():
        index = train_id[number if number < 1000 else number // 1000]
        if index in things:
            found.append((index, number < 1000, (ids == number).tobytes()))
    return found


def test_coarse_cityscapes_trains_and_never_validates(tmp_path: Path) -> None:
    scenes.write_cityscapes(tmp_path)
    scenes.write_cityscapes(tmp_path / "more", "gtCoarse")
    for kind in ("leftImg8bit", "gtCoarse"):
        (tmp_path / "more" / kind / "train" / "ulm").rename(tmp_path / f"{kind}-ulm")
    for kind in ("leftImg8bit", "gtCoarse"):
        place = tmp_path / kind / "train_extra" / "erlangen"
        place.parent.mkdir(parents=True)
        (tmp_path / f"{kind}-ulm").rename(place)
        for file in place.iterdir():
            file.rename(file.with_name(file.name.replace("ulm", "erlangen")))
    for file in (tmp_path / "leftImg8bit/train_extra").rglob("*.png"):
        scenes.picture(file)  # of its own name, since no image may occur twice
    shards, rows = read("cityscapes", tmp_path, tmp_path, coarse=True)
    assert shards.splits == {"train": 6, "val": 2, "test": 2}
    assert {n for n in rows if "erlangen" in n} < set(shards.split("train").ids)


def test_sunrgbd_labels_of_the_test_set_come_first(tmp_path: Path) -> None:
    from segcore.datasets.sunrgbd import FIRST, LABELS

    scenes.write_sunrgbd(tmp_path)
    shards, rows = read("sunrgbd", tmp_path, tmp_path)
    assert shards.splits["test"] == 3
    assert (shards.num_classes, shards.classes[23:25]) == (37, ("fridge", "tv"))
    for name, (_, mask) in rows.items():
        split, number = name.split("-")
        stored = tmp_path / LABELS / f"img-{FIRST[split] + int(number):06d}.png"
        assert (mask == np.asarray(Image.open(stored)) - np.uint8(1)).all()
    blocks = [{"train-000001", "train-000002"}, {"train-000060"}]
    assert set(shards.split("val").ids) in blocks


def test_ade_other_is_ignored(tmp_path: Path) -> None:
    scenes.write_ade(tmp_path)
    shards, rows = read("ade20k", tmp_path, tmp_path)
    assert shards.splits == {"train": 2, "val": 1, "test": 3}
    assert len(set(shards.classes)) == 150
    assert [shards.classes[i] for i in (0, 12, 58, 149)] == [
        "wall", "person", "screen door", "flag",
    ]  # fmt: skip
    for name, (_, mask) in rows.items():
        (stored,) = tmp_path.rglob(f"annotations/*/{name}.png")
        assert (mask == np.asarray(Image.open(stored)) - np.uint8(1)).all()


@pytest.mark.parametrize(
    ("classes", "wanted"),
    [("pet", (1, 1, 1, 1)), ("species", (1, 2, 1, 2)), ("breed", (1, 2, 6, 37))],
)
def test_pets_are_read_as_torchvision_does(
    tmp_path: Path, classes: str, wanted: tuple[int, ...]
) -> None:
    from torchvision.datasets import OxfordIIITPet

    scenes.write_pets(tmp_path)
    shards, rows = read("oxford_pet", tmp_path, tmp_path, classes=classes)
    assert shards.splits == {"train": 2, "val": 1, "test": 1}
    numbers = iter(wanted)
    for split in ("trainval", "test"):
        theirs = OxfordIIITPet(str(tmp_path), split=split, target_types=["segmentation"])
        for place, file in enumerate(theirs._images):
            row, mask = rows[file.stem]
            trimap = np.asarray(theirs[place][1])
            number = next(numbers)
            assert (mask == np.select([trimap == 1, trimap == 2], [number, 0], 255)).all()
            breed = file.stem.rsplit("_", 1)[0]
            named = {"pet": "pet", "species": "cat" if breed[0].isupper() else "dog"}
            assert shards.classes[number] == named.get(classes, breed)
            assert row.instances is None


def test_radiographs_are_bright_bones_at_the_masks_size(tmp_path: Path) -> None:
    scenes.write_jsrt(tmp_path)
    shards, rows = read("jsrt", tmp_path, tmp_path)
    assert (shards.in_channels, shards.num_classes) == (1, 6)
    assert shards.splits == {"train": 1, "val": 1, "test": 2}
    assert set(shards.split("test").ids) == {"JPCLN002", "JPCNN004"}
    row, mask = rows["JPCLN001"]
    assert (row.height, row.width) == (1024, 1024)
    assert [int(mask[y, x]) for y, x in ((500, 200), (500, 700), (600, 430), (200, 200))] == [
        1, 2, 3, 4,
    ]  # fmt: skip
    image = shards.split("test").decode(0)[0][..., 0].astype(float)
    name = shards.split("test").ids[0]
    film = np.fromfile(tmp_path / f"All247images/{name}.IMG", ">u2").reshape(2048, 2048)[::2, ::2]
    assert np.corrcoef(image.ravel(), film.ravel())[0, 1] < -0.99
    source = DataSource(raw=tmp_path / "raw", path=tmp_path, options={"complete": False, "fold": 2})
    other = {s.id for s in create_dataset("jsrt", source).samples() if s.split == "test"}
    assert other == {"JPCLN001", "JPCNN003"}


def test_coco_objects_are_read_as_torchvision_and_pycocotools_do(tmp_path: Path) -> None:
    evaluator = pytest.importorskip("faster_coco_eval")
    evaluator.init_as_pycocotools()
    from torchvision.datasets import CocoDetection

    scenes.write_coco(tmp_path)
    shards, rows = read("coco_instances", tmp_path, tmp_path)
    assert shards.splits == {"train": 2, "val": 1, "test": 1}
    assert (shards.num_classes, shards.tasks) == (81, ("semantic", "instance"))
    for split in ("train", "val"):
        listing = tmp_path / f"annotations/instances_{split}2017.json"
        theirs = CocoDetection(str(tmp_path / f"{split}2017"), str(listing))
        for place, number in enumerate(theirs.ids):
            row, mask = rows[f"{number:012d}"]
            wanted = []
            painted = np.zeros(scenes.SIZE, np.uint8)
            annotations = sorted(theirs[place][1], key=lambda a: (1 - a["iscrowd"], -a["area"]))
            for annotation in annotations:
                bits = theirs.coco.annToMask(annotation).astype(bool)
                name = theirs.coco.cats[annotation["category_id"]]["name"]
                category = shards.classes.index(name)
                wanted.append((category, bool(annotation["iscrowd"]), bits.tobytes()))
                painted[bits] = category
            assert masks_of(row) == sorted(wanted)
            assert (mask == painted).all()


def test_coco_panoptic_ids_are_those_of_its_formula(tmp_path: Path) -> None:
    scenes.write_coco(tmp_path)
    shards, rows = read("coco_panoptic", tmp_path, tmp_path)
    assert (shards.num_classes, sum(shards.things)) == (133, 80)
    assert shards.tasks == ("semantic", "instance", "panoptic")
    for split in ("train", "val"):
        content = json.loads((tmp_path / f"annotations/panoptic_{split}2017.json").read_text())
        names = {c["id"]: c["name"] for c in content["categories"]}
        for annotation in content["annotations"]:
            file = tmp_path / f"annotations/panoptic_{split}2017/{annotation['file_name']}"
            color = np.asarray(Image.open(file)).astype(np.uint32)
            ids = color[:, :, 0] + 256 * color[:, :, 1] + 256 * 256 * color[:, :, 2]  # rgb2id
            row, mask = rows[file.stem]
            wanted = []
            assert ((mask == 255) == (ids == 0)).all()
            for segment in annotation["segments_info"]:
                index = shards.classes.index(names[segment["category_id"]])
                bits = ids == segment["id"]
                assert (mask[bits] == index).all()
                if shards.things[index]:
                    wanted.append((index, bool(segment["iscrowd"]), bits.tobytes()))
            assert masks_of(row) == sorted(wanted)


def test_coco_stuff_maps_are_ids_less_one(tmp_path: Path) -> None:
    from segcore.datasets.coco2017_classes import STUFF, THINGS

    scenes.write_coco(tmp_path)
    shards, rows = read("coco_stuff", tmp_path, tmp_path)
    assert (shards.num_classes, shards.tasks) == (171, ("semantic",))
    names = THINGS | STUFF
    for name, (_, mask) in rows.items():
        (stored,) = tmp_path.glob(f"stuffthingmaps/*/{name}.png")
        values = np.asarray(Image.open(stored))
        for value in np.unique(values).tolist():
            found = np.unique(mask[values == value]).tolist()
            wanted = 255 if value == 255 else shards.classes.index(names[value + 1])
            assert found == [wanted]


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "semantic": ("ade20k", scenes.write_ade),
    "instance": ("coco_instances", scenes.write_coco),
    "panoptic": ("cityscapes", scenes.write_cityscapes),
}


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_kinds_are_fed(tmp_path: Path, kind: str) -> None:
    from segcore.tasks import get_kind

    name, write = WRITERS[kind]
    write(tmp_path)
    shards, _ = read(name, tmp_path, tmp_path)
    loader, _ = get_kind(kind).create_loaders(shards, batch_size=2, seed=0)
    batch = next(iter(loader))
    assert len(batch["image"]) == 2
    if kind != "semantic":
        assert all(len(target["masks"]) for target in batch["target"])
