import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from segcore.data.sample import Sample
from segcore.datasets.base import DataSource
from segcore.datasets.streets import Streets
from segcore.datasets.streets.compose import compose
from segcore.datasets.streets.render import SMALLEST, render
from segcore.datasets.streets.scene import CLASSES, PALETTE, THINGS
from segcore.datasets.streets.store import instances_of
from segcore.errors import DataError, OptionError, ShapeError
from segcore.inference import rle

SMALL = {
    "num_train": 4,
    "num_val": 1,
    "num_test": 2,
    "num_unlabelled": 1,
    "height": 64,
    "width": 96,
}


def make(raw: Path, seed: int = 0, **options: object) -> Streets:
    return Streets(DataSource(raw=raw, seed=seed, options={**SMALL, **options}))


def contents(raw: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(raw)): path.read_bytes()
        for path in sorted(raw.rglob("*"))
        if path.is_file()
    }


def mask_of(sample: Sample) -> np.ndarray:
    assert isinstance(sample.mask, Path)
    return np.asarray(Image.open(sample.mask))


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Streets:
    dataset = make(tmp_path_factory.mktemp("streets"))
    dataset.download()
    return dataset


def test_same_seed_same_bytes_and_other_seed_other_pictures(
    streets: Streets, tmp_path: Path
) -> None:
    make(tmp_path / "same").download()
    make(tmp_path / "other", seed=1).download()
    here, same, other = (contents(p) for p in (streets.raw, tmp_path / "same", tmp_path / "other"))
    assert here == same
    assert here.keys() == other.keys()
    name = "images/train/train_00000.png"
    assert here[name] != other[name]


def test_splits_ids_and_what_the_unlabelled_lack(streets: Streets) -> None:
    samples = list(streets.samples())
    assert Counter(s.split for s in samples) == {"train": 4, "val": 1, "test": 2, "unlabelled": 1}
    assert len({s.id for s in samples}) == len(samples)
    for sample in samples:
        assert isinstance(sample.image, Path)
        assert sample.image.stem == sample.id
        assert Image.open(sample.image).size == (96, 64)
        labelled = sample.split != "unlabelled"
        assert (sample.mask is not None) is labelled
        assert (sample.instances is not None) is labelled


def test_masks_are_palette_pngs_of_class_indices(streets: Streets) -> None:
    sample = next(streets.samples())
    assert isinstance(sample.mask, Path)
    picture = Image.open(sample.mask)
    assert picture.mode == "P"
    assert (picture.getpalette() or [])[: 3 * len(PALETTE)] == [c for rgb in PALETTE for c in rgb]
    assert mask_of(sample).max() < len(CLASSES)


def test_instances_tile_the_things_of_the_mask(streets: Streets) -> None:
    for sample in streets.samples():
        if sample.instances is None:
            continue
        mask = mask_of(sample)
        covered = np.zeros(mask.shape, int)
        for item in sample.instances:
            one = rle.decode(item.counts, *mask.shape)
            ys, xs = np.nonzero(one)
            assert (mask[one] == item.category).all()
            assert THINGS[item.category]
            assert item.area == one.sum() >= SMALLEST
            box = (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)
            assert item.bbox == tuple(float(value) for value in box)
            covered += one
        assert (covered == np.asarray(THINGS)[mask]).all()


def test_every_class_occurs_often_over_twenty_scenes() -> None:
    pixels = np.zeros(len(CLASSES), int)
    scenes = np.zeros(len(CLASSES), int)
    for index in range(20):
        picture = render(compose(0, "train", index), 64, 96)
        count = np.bincount(picture.classes.ravel(), minlength=len(CLASSES))
        pixels += count
        scenes += count > 0
    assert (scenes >= 12).all()
    assert (pixels / pixels.sum() > 0.004).all()
    assert pixels.max() / pixels.sum() < 0.5


def test_composition_does_not_depend_on_the_size() -> None:
    for index in range(3):
        scene = compose(0, "val", index)
        small, large = render(scene, 64, 96), render(scene, 128, 192)
        assert (small.classes == large.classes[::2, ::2]).mean() > 0.9


@pytest.mark.parametrize("size", [(32, 32), (45, 201), (96, 40)])
def test_any_size_and_shape_renders(size: tuple[int, int]) -> None:
    picture = render(compose(3, "test", 0), *size)
    assert picture.image.shape == (*size, 3)
    assert picture.classes.shape == picture.instances.shape == size
    assert len(instances_of(picture)) == len(picture.categories)


def test_colours_agree_with_labels_at_the_edge_of_a_building() -> None:
    """A label has no blended edge: classes change where colours change."""
    picture = render(compose(0, "train", 16), 128, 192)
    sky = picture.image[picture.classes == 0].astype(float)
    inner = np.abs(sky - np.median(sky, 0)).mean()
    others = picture.image[picture.classes == 1].astype(float)
    assert np.abs(others - np.median(sky, 0)).mean() > 2 * inner


def test_second_download_does_nothing_and_other_options_start_again(tmp_path: Path) -> None:
    make(tmp_path).download()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    make(tmp_path).download()
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    make(tmp_path, num_train=2, num_test=0).download()
    assert len(list((tmp_path / "images" / "train").iterdir())) == 2
    assert not list((tmp_path / "images" / "test").iterdir())
    assert json.loads((tmp_path / "streets.json").read_text())["num_train"] == 2


def test_interrupted_render_goes_on_and_ends_the_same(streets: Streets, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill(what: str, done: int, total: int) -> None:
        if done == 3:
            raise KilledError

    dataset = make(tmp_path)
    with pytest.raises(KilledError):
        dataset.download(kill)
    with pytest.raises(DataError, match="render"):
        next(dataset.samples())
    first = tmp_path / "images" / "train" / "train_00000.png"
    written = first.stat().st_mtime_ns
    (tmp_path / "images" / "train" / "train_00003.png.tmp").write_bytes(b"half")
    seen: list[int] = []
    dataset.download(lambda what, done, total: seen.append(done))
    assert seen[0] == 3
    assert seen[-1] == 8
    assert first.stat().st_mtime_ns == written
    assert contents(tmp_path) == contents(streets.raw)


def test_workers_render_what_one_process_renders(tmp_path: Path) -> None:
    options = {"num_train": 24, "num_val": 0, "num_test": 0, "height": 32, "width": 32}
    dataset = make(tmp_path, **options)
    dataset.download()
    last = render(compose(0, "train", 23), 32, 32)
    with Image.open(tmp_path / "images" / "train" / "train_00023.png") as picture:
        assert (np.asarray(picture) == last.image).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_trian": 3}, r"num_trian.*Known: num_train, num_val.*width"),
        ({"num_train": -1}, "num_train is -1"),
        ({"height": 8}, "height is 8"),
        ({"width": 96.5}, "width is 96.5"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        Streets(DataSource(raw=tmp_path, options=options))


def test_unwritable_folder_is_one_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(DataError, match="cannot be rendered into"):
        make(blocked).download()


def test_info_says_what_panoptic_needs(streets: Streets) -> None:
    info = streets.info()
    assert info.tasks == ("semantic", "instance", "panoptic")
    assert [name for name, thing in zip(info.classes, info.things, strict=True) if thing] == [
        "car",
        "person",
        "tree",
    ]
    assert len(set(info.palette)) == info.num_classes == 7


@settings(deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_rle_equals_the_coco_api(mask: np.ndarray) -> None:
    coco = pytest.importorskip("faster_coco_eval.core.mask")
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    ours = rle.encode(mask)
    assert ours == (theirs.decode() if isinstance(theirs, bytes) else theirs)
    assert (rle.decode(ours, *mask.shape) == mask).all()


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 300), st.integers(1, 300))
def test_rle_of_boxes_round_trips_with_long_runs(thick: int, height: int, width: int) -> None:
    mask = np.zeros((height, width), bool)
    mask[height // 3 : height // 3 + thick, width // 4 :] = True
    assert (rle.decode(rle.encode(mask).encode(), height, width) == mask).all()


def test_rle_refuses_damaged_counts_and_wrong_shapes() -> None:
    counts = rle.encode(np.eye(6, dtype=bool))
    with pytest.raises(DataError, match="6x7 has 42"):
        rle.decode(counts, 6, 7)
    with pytest.raises(DataError, match="byte 32"):
        rle.decode(" " + counts, 6, 6)
    with pytest.raises(ShapeError, match=r"\(2, 3, 4\)"):
        rle.encode(np.zeros((2, 3, 4), bool))
