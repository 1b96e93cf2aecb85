"""Own folders laid out as Pascal's and Cityscapes', also as labelling tools write them."""

from pathlib import Path
from typing import Any

import numpy as np
import published_scenes as scenes
import pytest
from PIL import Image

from segcore.data.prepare import Validation, validate
from segcore.datasets import DataSource, create_dataset
from segcore.datasets.cityscapes import CLASSES, FIRST_THING
from segcore.datasets.palette import bit_palette, read_classes
from segcore.errors import DataError, OptionError
from segcore.inference import rle

Segments = list[tuple[int, bool, bytes]]


def check(path: Path, raw: Path, name: str = "folder", **options: Any) -> Validation:
    dataset = create_dataset(name, DataSource(raw=raw, path=path, options=options))
    dataset.download()
    return validate(dataset, workers=1)


def segments(validation: Validation) -> dict[str, Segments]:
    """(class, crowd, mask) of the objects of each sample."""
    found: dict[str, Segments] = {}
    for sample in validation.samples:
        instances = sample.resolve()[0].instances
        assert instances is not None
        found[sample.id] = sorted(
            (i.category, i.iscrowd, rle.decode(i.counts, *scenes.SIZE).tobytes()) for i in instances
        )
    return found


def errors(validation: Validation) -> list[str]:
    return [fault.fault for fault in validation.faults if fault.severity == "error"]


def add_train_ids(path: Path) -> None:
    """What csCreateTrainIdLabelImgs adds."""
    table = np.full(256, 255, np.uint8)
    for index, (number, _) in enumerate(CLASSES.values()):
        table[number] = index
    for file in path.rglob("*_gtFine_labelIds.png"):
        labels = table[np.asarray(Image.open(file))]
        scenes.save(file.with_name(file.name.replace("labelIds", "labelTrainIds")), labels)
    (path / "classes.txt").write_text("\n".join(CLASSES))


def test_a_folder_like_cityscapes_is_what_cityscapes_is(tmp_path: Path) -> None:
    data = tmp_path / "data"
    scenes.write_cityscapes(data)
    add_train_ids(data)
    own = check(data, tmp_path / "raw")
    published = check(data, tmp_path / "raw", "cityscapes", complete=False)
    assert errors(own) == []
    assert own.info.classes == published.info.classes
    assert segments(own) == segments(published)
    assert {s.split for s in own.samples} == {"train", "val"}
    for mine, theirs in zip(
        sorted(own.samples, key=lambda s: s.id),
        sorted(published.samples, key=lambda s: s.id),
        strict=True,
    ):
        assert (mine.id, mine.image) == (theirs.id, theirs.image)
    things = [c for c, thing in zip(own.info.classes, own.info.things, strict=True) if thing]
    assert things == ["person", "car"]  # those that have objects here
    assert set(things) < set(list(CLASSES)[FIRST_THING:])
    assert own.info.tasks == ("semantic", "instance", "panoptic")


def test_ids_without_names_and_things_by_option(tmp_path: Path) -> None:
    data = tmp_path / "data"
    scenes.write_cityscapes(data)
    ids = dict.fromkeys(range(34), 255) | {7: 0, 23: 1, 24: 2, 26: 3}
    options: dict[str, Any] = {"mask_values": ids, "things": ["class_3"]}
    own = check(data, tmp_path / "raw", **options)
    assert errors(own) == []
    assert own.info.things == (False, False, False, True)
    assert {category for found in segments(own).values() for category, *_ in found} == {3}
    with pytest.raises(OptionError, match=r"things names 'car', the classes are class_0"):
        check(data, tmp_path / "raw", **options | {"things": ["car"]})


def test_cityscapes_as_cvat_writes_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split in ("train", "val"):
        scenes.picture(data / f"imgsFine/leftImg8bit/{split}/{split}_leftImg8bit.png")
        labels = scenes.rng_of(split).integers(0, 3, scenes.SIZE, dtype=np.uint8)
        scenes.save(data / f"gtFine/{split}/{split}_gtFine_labelIds.png", labels)
    (data / "label_colors.txt").write_text("0 0 0 background\n255 0 0 leaf\n0 255 0 fruit stalk\n")
    own = check(data, tmp_path / "raw")
    assert errors(own) == []
    assert own.info.classes == ("background", "leaf", "fruit stalk")
    assert own.info.palette[2] == (0, 255, 0)
    assert own.info.tasks == ("semantic",)
    assert {sample.id: sample.split for sample in own.samples} == {"train": "train", "val": "val"}


def test_faults_of_instance_ids_are_named(tmp_path: Path) -> None:
    data = tmp_path / "data"
    scenes.write_cityscapes(data)
    add_train_ids(data)
    files = sorted(data.rglob("*_instanceIds.png"))
    scenes.save(files[0], np.zeros((4, 4), np.uint16))
    files[1].write_bytes(b"no image")
    own = check(data, tmp_path / "raw")
    assert own.rejected == 2
    assert sorted(errors(own)) == ["size mismatch", "unreadable objects"]
    for file in data.rglob("*_label*.png"):
        file.unlink()
    with pytest.raises(
        DataError, match=r"no image of .*data has a label map: it needs leftImg8bit"
    ):
        check(data, tmp_path / "raw")


LABELMAP = """# label:color_rgb:parts:actions
background:0,0,0::
cat:128,0,0::
dog:0,128,0:head,tail:
"""


def paint(values: np.ndarray) -> np.ndarray:
    return np.array(bit_palette(256), np.uint8)[values]


def test_pascal_as_cvat_writes_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("a", "b", "c"):
        ids, _ = scenes.objects_of(name)
        classes = scenes.with_border(ids, scenes.by_id(ids, [1, 2, 1]))
        scenes.picture(data / f"JPEGImages/{name}.jpg")
        scenes.save(data / f"SegmentationClass/{name}.png", paint(classes))
        objects = scenes.with_border(ids, ids)
        scenes.save(data / f"SegmentationObject/{name}.png", paint(objects))
    (data / "labelmap.txt").write_text(LABELMAP)
    own = check(data, tmp_path / "raw", things=["cat", "dog"])
    assert errors(own) == []
    assert own.info.classes == ("background", "cat", "dog")
    for name, found in segments(own).items():
        ids, _ = scenes.objects_of(name)
        inner = np.where(scenes.with_border(ids, ids) == 255, 0, ids)
        wanted = [(c, False, (inner == i).tobytes()) for i, c in ((1, 1), (2, 2), (3, 1))]
        assert found == sorted(wanted)
    void = {sample.id: inspection.values for sample, inspection in
            zip(own.samples, own.found, strict=True)}  # fmt: skip
    assert all(values is not None and values[255] > 0 for values in void.values())


def test_lists_of_other_forms_are_refused(tmp_path: Path) -> None:
    listing = tmp_path / "labelmap.txt"
    listing.write_text("cat 1 2 3\n")
    with pytest.raises(DataError, match=r"labelmap\.txt has 'cat 1 2 3'"):
        read_classes(listing)
    listing.write_text("cat:::\ndog:::\n")
    assert read_classes(listing) == (("cat", "dog"), ())
    listing.write_text("cat:1,2,300::\n")
    with pytest.raises(DataError, match="as the tool writes it"):
        read_classes(listing)
