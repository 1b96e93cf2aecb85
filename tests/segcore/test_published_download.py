"""Published datasets: archives are unpacked and verified, what is missing is said, splits drawn."""

import hashlib
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import published_scenes as scenes
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.data.prepare import prepare, validate
from segcore.datasets import DATASETS, DataSource, create_dataset
from segcore.datasets import ade20k as ade20k_module
from segcore.datasets.mat_file import MatMask
from segcore.datasets.published import Entry, PublishedDataset, hold_out
from segcore.errors import DataError, OptionError

PUBLISHED = (
    "ade20k", "cityscapes", "coco_instances", "coco_panoptic", "coco_stuff", "jsrt", "nyuv2",
    "oxford_pet", "sbd", "sunrgbd", "voc2012",
)  # fmt: skip

DOCS = Path(__file__).parents[2] / "docs" / "datasets.md"


def create(name: str, raw: Path, **given: Any) -> PublishedDataset:
    dataset = create_dataset(name, DataSource(raw=raw, **given))
    assert isinstance(dataset, PublishedDataset)
    return dataset


@pytest.mark.parametrize("name", PUBLISHED)
def test_descriptions_hold_together(tmp_path: Path, name: str) -> None:
    dataset = create(name, tmp_path)
    info, publication = dataset.describe(), dataset.publication
    assert info.name == publication.name == name
    assert len(info.palette) == info.num_classes == len(set(info.classes))
    assert not any("\n" in c or c != c.strip() for c in info.classes)
    assert not info.things or len(info.things) == info.num_classes
    assert set(publication.counts) == set(publication.roles)
    assert set(publication.roles.values()) >= {"train", "test"}
    values = set(info.mask_values.values()) - {info.ignore_index}
    assert not values or values == set(range(info.num_classes))
    assert all(a.url or "http" in publication.page for a in publication.archives)
    assert name in DATASETS
    assert f"| `{name}` |" in DOCS.read_text()


def test_what_needs_a_login_says_what_to_put_where(tmp_path: Path) -> None:
    wanted = (
        r"leftImg8bit_trainvaltest\.zip, gtFine_trainvaltest\.zip from https://www\.cityscapes.*"
        r"put them into .*mirror; or .*data\.path.*gtFine/\{train,val\}"
    )
    with pytest.raises(DataError, match=wanted):
        create("cityscapes", tmp_path / "raw", mirror=tmp_path / "mirror").download()
    with pytest.raises(DataError, match=r"jsrt .*All247images\.zip, scratch\.zip from .*jsrt"):
        create("jsrt", tmp_path / "raw").download()
    assert list(tmp_path.iterdir()) == []


def pack(archive: Path, root: Path, top: str = "") -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as packed:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                packed.write(file, f"{top}{file.relative_to(root).as_posix()}")


def test_archives_of_the_mirror_are_unpacked_once(tmp_path: Path) -> None:
    scenes.write_cityscapes(tmp_path / "made")
    for kind in ("leftImg8bit", "gtFine"):
        place = tmp_path / f"mirror/{kind}_trainvaltest.zip"
        pack(place, tmp_path / "made" / kind, f"{kind}/")
    raw = tmp_path / "raw"
    options = {"options": {"complete": False}, "mirror": tmp_path / "mirror"}
    create("cityscapes", raw, **options).download()
    assert sum(file.suffix == ".png" for file in raw.rglob("*")) == 3 * 8  # no colours, no polygons
    assert not list(raw.rglob("*.json"))[1:]
    about = json.loads((raw / "source.json").read_text())
    assert about["images"] == {"train": 6, "val": 2}
    first = next(raw.rglob("*_labelIds.png"))
    before = first.stat().st_mtime_ns
    create("cityscapes", raw, **options).download()
    assert first.stat().st_mtime_ns == before
    first.unlink()
    create("cityscapes", raw, **options).download()
    assert json.loads((raw / "source.json").read_text()) == about
    assert prepare(create("cityscapes", raw, **options), tmp_path / "out", workers=1).rejected == 0


def test_an_archive_in_an_archive_is_unpacked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segcore.datasets import coco2017

    made, mirror = tmp_path / "made", tmp_path / "mirror"
    scenes.write_coco(made)
    for split in ("train", "val"):
        pack(mirror / f"{split}2017.zip", made / f"{split}2017", f"{split}2017/")
        pngs = made / "annotations" / f"panoptic_{split}2017"
        pack(made / f"annotations/panoptic_{split}2017.zip", pngs, f"{pngs.name}/")
        for file in pngs.iterdir():
            file.unlink()
    pack(mirror / "panoptic_annotations_trainval2017.zip", made / "annotations", "annotations/")
    loose = tuple(replace(archive, packed="") for archive in coco2017.PANOPTIC.archives)
    monkeypatch.setattr(coco2017, "PANOPTIC", replace(coco2017.PANOPTIC, archives=loose))
    options = {"options": {"complete": False}, "mirror": mirror}
    dataset = create("coco_panoptic", tmp_path / "raw", **options)
    dataset.download()
    assert not list((tmp_path / "raw").rglob("*.zip"))
    assert [len(entry.labels) for entry in dataset.entries] == [1] * 4
    assert not dataset._faults()[2:]  # the two counts alone


def test_a_wrong_archive_is_refused_by_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes.write_ade(tmp_path / "made")
    packed = tmp_path / "mirror/ADEChallengeData2016.zip"
    pack(packed, tmp_path / "made")
    options = {"options": {"complete": False}, "mirror": packed.parent}
    with pytest.raises(DataError, match=r"2016\.zip is not what its publisher.*sha1 .*219e1696"):
        create("ade20k", tmp_path / "raw", **options).download()
    assert not (tmp_path / "raw").exists()
    publication = ade20k_module.PUBLICATION
    digest = f"sha1:{hashlib.sha1(packed.read_bytes()).hexdigest()}"
    archives = (replace(publication.archives[0], packed=digest),)
    monkeypatch.setattr(ade20k_module, "PUBLICATION", replace(publication, archives=archives))
    create("ade20k", tmp_path / "raw", **options).download()
    assert len(list((tmp_path / "raw").rglob("*.jpg"))) == 6


def test_tarballs_with_any_top_folder_are_unpacked(tmp_path: Path) -> None:
    scenes.write_nyu(tmp_path / "made")
    (tmp_path / "mirror").mkdir()
    with tarfile.open(tmp_path / "mirror/nyud.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made/nyud", "./some/nyud")
    options = {"options": {"complete": False}, "mirror": tmp_path / "mirror"}
    dataset = create("nyuv2", tmp_path / "raw", **options)
    dataset.download()
    assert [sample.split for sample in dataset.samples()] == ["train", "train", "val", "test"]


def test_incomplete_copies_are_refused_unless_allowed(tmp_path: Path) -> None:
    scenes.write_pets(tmp_path)
    lost = tmp_path / "oxford-iiit-pet/images/Bengal_3.jpg"
    lost.unlink()
    wanted = (
        r"trainval has 3 images, published are 3680; test has 1 images, published are 3669; "
        r"1 files are missing, first .*Bengal_3\.jpg.*complete: false"
    )
    with pytest.raises(DataError, match=wanted):
        create("oxford_pet", tmp_path / "raw", path=tmp_path).download()
    dataset = create("oxford_pet", tmp_path / "raw", path=tmp_path, options={"complete": False})
    dataset.download()
    validation = validate(dataset, workers=1)
    assert validation.rejected == 0
    assert "Bengal_3" not in {sample.id for sample in validation.samples}
    faults = [f.value for f in validation.faults if f.fault == "part of the published dataset"]
    assert len(faults) == 3


def test_a_complete_copy_is_taken_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes.write_ade(tmp_path / "copy")
    counts = {"training": 3, "validation": 3}
    publication = replace(ade20k_module.PUBLICATION, counts=counts)
    monkeypatch.setattr(ade20k_module, "PUBLICATION", publication)
    dataset = create("ade20k", tmp_path / "raw", path=tmp_path / "copy")
    dataset.download()
    about = json.loads((tmp_path / "raw/source.json").read_text())
    assert (about["images"], about["path"]) == (counts, str(tmp_path / "copy"))
    assert dataset.info().assumptions == ()
    scenes.picture(tmp_path / "copy/ADEChallengeData2016/images/training/ADE_train_00000001.jpg")
    label = tmp_path / "copy/ADEChallengeData2016/annotations/training/ADE_train_00000001.png"
    label.write_bytes(label.read_bytes() + b"\0")
    create("ade20k", tmp_path / "raw", path=tmp_path / "copy").download()
    assert json.loads((tmp_path / "raw/source.json").read_text()) != about


def test_other_folders_and_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no voc2012: ImageSets/.*needs JPEGImages"):
        create("voc2012", tmp_path / "raw", path=tmp_path).download()
    with pytest.raises(DataError, match="is missing: run the download stage"):
        list(create("voc2012", tmp_path / "raw").samples())
    for name, option, wanted in (
        ("voc2012", {"sdb": True}, "voc2012 has no option 'sdb'. Known: complete, sbd"),
        ("ade20k", {"complete": "no"}, "complete is 'no': use true or false"),
        ("oxford_pet", {"classes": "cats"}, "use one of pet, species, breed"),
        ("jsrt", {"fold": 3}, "fold is 3: use one of 1, 2"),
    ):
        with pytest.raises(OptionError, match=wanted):
            create(name, tmp_path / "raw", options=option)


def test_damaged_matlab_files_are_named(tmp_path: Path) -> None:
    scenes.write_nyu(tmp_path)
    (tmp_path / "nyud/segmentation/img_5001.mat").write_bytes(b"no matlab")
    dataset = create("nyuv2", tmp_path / "raw", path=tmp_path, options={"complete": False})
    dataset.download()
    validation = validate(dataset, workers=1)
    errors = [fault for fault in validation.faults if fault.severity == "error"]
    assert [(fault.fault, Path(fault.file).name) for fault in errors] == [
        ("unreadable mask", "img_5001.mat")
    ]
    (flaw,) = MatMask(tmp_path / "nyud/segmentation/img_5003.mat", "labels").read().flaws
    assert "no variable labels, but segmentation" in flaw.value
    scenes.write_sbd(tmp_path / "sbd", ["a", "b"], ["c"])
    (tmp_path / "sbd/inst/b.mat").write_bytes(b"")
    dataset = create("sbd", tmp_path / "raw", path=tmp_path / "sbd", options={"complete": False})
    errors = [f for f in validate(dataset, workers=1).faults if f.severity == "error"]
    assert ("unreadable objects", "b.mat") in [(f.fault, Path(f.file).name) for f in errors]


def test_other_categories_than_published_are_refused(tmp_path: Path) -> None:
    scenes.write_coco(tmp_path)
    listing = tmp_path / "annotations/instances_val2017.json"
    listing.write_text(listing.read_text().replace("toothbrush", "hair brush"))
    options = {"complete": False}
    dataset = create("coco_instances", tmp_path / "raw", path=tmp_path, options=options)
    with pytest.raises(DataError, match=r"other categories than COCO 2017, first \(90, 'hair"):
        dataset.download()


def test_a_radiograph_of_another_size_is_refused(tmp_path: Path) -> None:
    from segcore.datasets.jsrt import read_radiograph

    np.zeros(100, ">u2").tofile(tmp_path / "a.IMG")
    with pytest.raises(DataError, match=r"a\.IMG holds 100 pixels, expected 2048x2048"):
        read_radiograph(tmp_path / "a.IMG")


def entries_of(groups: list[int]) -> list[Entry]:
    names = [(g, f"{g}-{i}") for g, size in enumerate(groups) for i in range(size)]
    return [Entry("train", name, Path(name), (), f"g{group}") for group, name in names]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=9),
    st.floats(0, 0.9),
    st.integers(0, 5),
)
def test_whole_groups_are_held_out(groups: list[int], fraction: float, seed: int) -> None:
    entries = entries_of(groups)
    held = hold_out(entries, fraction, seed)
    assert held == hold_out(entries[::-1], fraction, seed)
    parts = {e.group: {x.name for x in entries if x.group == e.group} for e in entries}
    assert all(part <= held or not part & held for part in parts.values())
    assert len(held) < len(entries)
    assert bool(held) == (fraction > 0 and len(groups) > 1)
    taken = sum(part <= held for part in parts.values())
    assert taken <= 1 or len(held) <= round(len(entries) * fraction)


def test_more_images_move_few_others_and_seeds_differ() -> None:
    few, more = entries_of([1] * 200), entries_of([1] * 220)
    first, second = hold_out(few, 0.15, 0), hold_out(more, 0.15, 0)
    assert (len(first), len(second)) == (30, 33)
    assert len(first & second) > 20
    assert hold_out(few, 0.15, 1) != first
