"""Every fault of a user's folder, by real files: named by file, value and fix."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segcore.data.prepare import Validation, prepare, validate
from segcore.data.shards import open_shards
from segcore.datasets import DataSource, create_dataset
from segcore.errors import DataError

SIZE = (24, 20)


def make_folder(path: Path, count: int = 9) -> Path:
    """A good folder: classes 0..2 and 255, lists of the three splits."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (path / kind).mkdir(parents=True)
    stems = [f"s{number}" for number in range(count)]
    for stem in stems:
        pixels = rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / "images" / f"{stem}.png")
        mask = rng.integers(0, 3, SIZE, dtype=np.uint8)
        mask[0, 0] = 255
        Image.fromarray(mask).save(path / "masks" / f"{stem}.png")
    (path / "classes.txt").write_text("road\ncar\ntree\n")
    (path / "train.txt").write_text("\n".join(stems[:5]))
    (path / "val.txt").write_text("\n".join(stems[5:7]))
    (path / "test.txt").write_text("\n".join(stems[7:]))
    return path


def check(path: Path, **source: object) -> Validation:
    dataset = create_dataset(
        "folder",
        DataSource(raw=path.parent / "raw", path=path, **source),  # type: ignore[arg-type]
    )
    return validate(dataset, workers=1)


def save_mask(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(mask).save(path)


def out_of_range(path: Path) -> None:
    save_mask(path / "masks" / "s1.png", np.full(SIZE, 7, np.uint8))


def rgb(path: Path) -> None:
    save_mask(path / "masks" / "s1.png", np.full((*SIZE, 3), (9, 9, 8), np.uint8))


def mismatch(path: Path) -> None:
    save_mask(path / "masks" / "s1.png", np.zeros((24, 19), np.uint8))


def no_mask(path: Path) -> None:
    (path / "masks" / "s1.png").unlink()


def no_image(path: Path) -> None:
    (path / "images" / "s1.png").unlink()


def leak(path: Path) -> None:
    (path / "images" / "s1.png").write_bytes((path / "images" / "s7.png").read_bytes())


def truncated_image(path: Path) -> None:
    file = path / "images" / "s1.png"
    file.write_bytes(file.read_bytes()[:-400])


def truncated_mask(path: Path) -> None:
    file = path / "masks" / "s1.png"
    file.write_bytes(file.read_bytes()[:60])


def no_picture(path: Path) -> None:
    (path / "images" / "s1.png").write_text("hello")


def deep_mask(path: Path) -> None:
    Image.fromarray(np.full(SIZE, 300, np.uint16)).save(path / "masks" / "s1.png")


def lossy(path: Path) -> None:
    (path / "masks" / "s1.png").unlink()
    Image.fromarray(np.ones(SIZE, np.uint8)).save(path / "masks" / "s1.jpg")


def same_id(path: Path) -> None:
    Image.new("RGB", SIZE[::-1], (1, 2, 3)).save(path / "images" / "s1.jpg")


FAULTS: list[tuple[Callable[[Path], None], str, str, str, str]] = [
    (out_of_range, "masks/s1.png", "class id out of range", "7", "use 0..2 or 255 (ignored)"),
    (rgb, "masks/s1.png", "RGB mask without a palette", "(9,9,8)", "one-channel PNG"),
    (mismatch, "masks/s1.png", "size mismatch", "mask 24x19, image 24x20", "same height"),
    (no_mask, "images/s1.png", "missing mask", "none of this stem", "unlabelled.txt"),
    (no_image, "images/s1.png", "missing image", "No such file or directory", "add the image"),
    (leak, "images/s1.png", "duplicate across splits", "s7.png (test)", "remove it from one"),
    (truncated_image, "images/s1.png", "unreadable image", "truncated", "intact copy"),
    (truncated_mask, "masks/s1.png", "unreadable mask", "truncated", "intact copy"),
    (no_picture, "images/s1.png", "unreadable image", "not an image file", "intact copy"),
    (deep_mask, "masks/s1.png", "16-bit mask", "300", "8-bit one-channel PNG"),
    (lossy, "masks/s1.jpg", "lossy mask", "JPEG", "export it as PNG"),
    (same_id, "images/s1.png", "duplicate id", "s1 is also", "rename one"),
]


@pytest.mark.parametrize(
    ("spoil", "file", "fault", "value", "fix"), FAULTS, ids=[f[0].__name__ for f in FAULTS]
)
def test_fault_is_named(
    tmp_path: Path, spoil: Callable[[Path], None], file: str, fault: str, value: str, fix: str
) -> None:
    path = make_folder(tmp_path / "own")
    spoil(path)
    validation = check(path)
    errors = [f for f in validation.faults if f.severity == "error"]
    assert [(f.file, f.fault, f.split) for f in errors] == [(str(path / file), fault, "train")]
    assert value in errors[0].value
    assert fix in errors[0].fix
    assert validation.rejected == 1
    with pytest.raises(DataError, match="max_rejected is 0"):
        validation.check(0)
    validation.check(1)
    assert "s1" not in [s.id for s in validation.samples] or fault == "duplicate id"


def test_good_folder_has_no_faults(tmp_path: Path) -> None:
    validation = check(make_folder(tmp_path / "own"))
    assert validation.faults == ()
    assert [s.split for s in validation.samples] == ["train"] * 5 + ["val"] * 2 + ["test"] * 2
    assert validation.csv() == b"file,split,fault,value,fix,severity\n"


def binary(path: Path, value: int = 255) -> Path:
    """Masks of 0 and one value, in a grey file, a colour one, and one of single bits."""
    for number in range(9):
        mask = np.zeros(SIZE, np.uint8)
        mask[:, number + 5 :] = value
        image = Image.fromarray(mask)
        image.convert("RGB" if number % 2 else "L").save(path / "masks" / f"s{number}.png")
    return path


@pytest.mark.parametrize("value", [255, 128])
def test_binary_masks_are_mapped_with_a_warning(tmp_path: Path, value: int) -> None:
    path = binary(make_folder(tmp_path / "own"), value)
    for names in ("background\nobject\n", None):
        (path / "classes.txt").write_text(names) if names else (path / "classes.txt").unlink()
        validation = check(path)
        assert [(f.fault, f.severity) for f in validation.faults] == [
            (f"binary mask 0/{value}", "warning")
        ]
        assert f"{{0: 0, {value}: 255}}" in validation.faults[0].fix
        assert validation.info.num_classes == 2
        assert all(f.values is not None and f.values[1] > 0 for f in validation.found)
    assert check(path, options={"mask_values": {0: 0, value: 1}}).faults == ()
    ignored = check(path, options={"mask_values": {0: 0, value: 255}})
    assert (ignored.info.num_classes, ignored.faults) == (1, ())


def test_binary_masks_of_many_named_classes_are_refused(tmp_path: Path) -> None:
    validation = check(binary(make_folder(tmp_path / "own")))
    assert {f.fault for f in validation.faults if f.severity == "error"} == {"binary mask 0/255"}
    assert validation.rejected == 9
    assert "mask_values" in validation.faults[0].fix


def test_masks_of_zero_and_one_need_no_mapping(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "own")
    (path / "classes.txt").unlink()
    for number in range(9):
        mask = np.eye(*SIZE, number, dtype=np.uint8)
        image = Image.fromarray(mask)
        (Image.fromarray(mask * 255).convert("1") if number % 2 else image).save(
            path / "masks" / f"s{number}.png"
        )
    validation = check(path)
    assert (validation.info.num_classes, validation.faults) == (2, ())


def test_scattered_values_are_answered_by_a_mapping(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "own")
    (path / "classes.txt").unlink()
    for number in range(9):
        mask = np.full(SIZE, 80, np.uint8)
        mask[3:9], mask[9:12] = 160, 0
        save_mask(path / "masks" / f"s{number}.png", mask)
    fault = check(path).faults[0]
    assert fault.fault == "class id out of range"
    assert fault.fix.endswith("set data.options.mask_values: {0: 0, 80: 1, 160: 2}")
    assert check(path, options={"mask_values": {0: 0, 80: 1, 160: 2}}).faults == ()


def test_a_stray_value_makes_no_classes(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "own")
    (path / "classes.txt").unlink()
    mask = np.ones(SIZE, np.uint8)
    mask[3, 4] = 200
    save_mask(path / "masks" / "s2.png", mask)
    validation = check(path)
    assert validation.info.classes == ("class_0", "class_1", "class_2")
    assert [(f.fault, f.value) for f in validation.faults] == [("class id out of range", "200")]


def test_empty_classes_and_splits_are_warnings(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "own")
    (path / "classes.txt").write_text("road\ncar\ntree\nboat\n")
    (path / "test.txt").unlink()
    validation = check(path)
    assert [(f.fault, f.value, f.severity) for f in validation.faults] == [
        ("empty class", "3 (boat)", "warning"),
        ("empty split", "0", "warning"),
    ]
    assert validation.rejected == 0
    validation.check(0)


def test_twins_in_one_split_are_a_warning(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "own")
    (path / "images" / "s1.png").write_bytes((path / "images" / "s2.png").read_bytes())
    assert [(f.fault, f.severity) for f in check(path).faults] == [("duplicate image", "warning")]


def test_palette_masks_are_indices(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "own")
    mask = Image.new("P", SIZE[::-1], 2)
    mask.putpalette([5, 5, 5, 90, 0, 0, 0, 80, 0])
    mask.save(path / "masks" / "s0.png")
    dataset = create_dataset("folder", DataSource(raw=tmp_path / "raw", path=path))
    assert prepare(dataset, tmp_path / "out", workers=1).faults == ()
    row = open_shards(tmp_path / "out").split("train")
    stored = row.decode(row.ids.index("s0"))[1]
    assert stored is not None
    assert (stored == 2).all()


def test_rejected_samples_are_left_out_and_listed(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "own")
    mismatch(path)
    dataset = create_dataset("folder", DataSource(raw=tmp_path / "raw", path=path))
    with pytest.raises(DataError, match="1 samples of own are rejected"):
        prepare(dataset, tmp_path / "out", workers=1)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["rejected.csv"]
    prepare(dataset, tmp_path / "out", workers=1, max_rejected=1)
    assert "s1" not in open_shards(tmp_path / "out").split("train").ids
    table = list(csv.DictReader(io.StringIO((tmp_path / "out" / "rejected.csv").read_text())))
    assert table == [
        {
            "file": str(path / "masks" / "s1.png"),
            "split": "train",
            "fault": "size mismatch",
            "value": "mask 24x19, image 24x20",
            "fix": "give image and mask the same height and width",
            "severity": "error",
        }
    ]


def test_no_training_sample_is_refused(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "own")
    (path / "train.txt").unlink()
    with pytest.raises(DataError, match="no training sample"):
        check(path).check(0)
