"""The predict function on real files, shards, packages and Ray."""

import io
import json
import os
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.params import Params
from pipelines.prediction import journal, manifest
from pipelines.prediction.inputs import find_inputs, read_bytes
from pipelines.prediction.run import SOME_FAILED, Summary, predict, ray_min_images
from pipelines.prediction.worker import Worker
from segcore.data.shards import open_shards
from segcore.errors import DataError, PackageError
from segcore.machine import describe_machine
from segcore.package import load_package, package_digest

OUT = Path("out")


@pytest.fixture
def images(project: Params, painted_shards: Path) -> Path:
    """Six images in two folders, of several kinds, with equal names where they may clash."""
    split = open_shards(painted_shards).split("test")
    folder = Path("images")
    (folder / "b").mkdir(parents=True)
    pictures = [Image.fromarray(split.decode(index)[0]) for index in range(6)]
    pictures[0].save(folder / "one.png")
    pictures[1].save(folder / "b" / "one.png")
    pictures[2].save(folder / "two.jpg", quality=95)
    pictures[3].save(folder / "two.png")
    pictures[4].resize((100, 70)).convert("L").save(folder / "grey.tif")
    pictures[5].convert("RGBA").save(folder / "b" / "alpha.webp", lossless=True)
    return folder


def run(params: Params, images: Path | str, package: Path, **options: bool) -> Summary:
    return predict(
        params,
        images=str(images),
        model=str(package),
        out=OUT,
        **{"overlays": False, **options},
    )


def test_folder_gives_palette_masks_at_the_size_of_each_image(
    project: Params, images: Path, good_package: Path
) -> None:
    summary = run(project, images, good_package, overlays=True)
    assert (summary.done, summary.kept, summary.exit_code) == (6, 0, 0)
    masks = sorted(str(path.relative_to(OUT)) for path in (OUT / "masks").rglob("*.png"))
    assert masks == [
        "masks/b/alpha.png",
        "masks/b/one.png",
        "masks/grey.png",
        "masks/one.png",
        "masks/two.jpg.png",
        "masks/two.png.png",
    ]
    with Image.open(OUT / "masks/grey.png") as mask:
        assert (mask.mode, mask.size) == ("P", (100, 70))
        assert mask.getpalette()[3:6] == [220, 60, 60]
    predictor = load_package(good_package)
    expected = predictor(images / "b" / "one.png")[0].mask
    np.testing.assert_array_equal(np.asarray(Image.open(OUT / "masks/b/one.png")), expected)
    assert Image.open(OUT / "overlays/grey.jpg").size == (100, 70)


def test_manifest_leads_from_mask_to_model_and_data(
    project: Params, images: Path, good_package: Path, painted_shards: Path
) -> None:
    run(project, images, good_package)
    rows = manifest.read(OUT)
    row = rows["images/one.png"]
    assert row.model_digest == package_digest(good_package)
    assert row.model_version == str(good_package)
    assert row.dataset_digest == open_shards(painted_shards).digest
    assert sum(row.class_shares.values()) == pytest.approx(1)
    found = duckdb.sql(
        f"select class_shares['ground'], height from '{OUT}/manifest.parquet' "
        "where path = 'images/one.png'"
    ).fetchall()
    assert found == [(row.class_shares["ground"], 48)]


def test_second_run_does_only_what_is_missing(
    project: Params, images: Path, good_package: Path, bad_package: Path
) -> None:
    run(project, images, good_package)
    before = (OUT / "manifest.parquet").read_bytes()
    kept = {path: path.stat().st_mtime_ns for path in (OUT / "masks").rglob("*.png")}
    again = run(project, images, good_package)
    assert (again.done, again.kept) == (0, 6)
    assert (OUT / "manifest.parquet").read_bytes() == before

    (OUT / "masks/one.png").unlink()
    Image.new("RGB", (64, 48), (220, 60, 60)).save(images / "two.png")
    third = run(project, images, good_package)
    assert (third.done, third.kept) == (2, 4)
    touched = {path for path, time in kept.items() if path.stat().st_mtime_ns != time}
    assert touched == {OUT / "masks/one.png", OUT / "masks/two.png.png"}

    assert run(project, images, good_package, overlays=True).done == 6
    assert run(project, images, bad_package, overlays=True).done == 6


def test_confidence_contours_and_augmentation(
    project: Params, images: Path, good_package: Path
) -> None:
    run(project, images, good_package)
    more = project.override({"predict.extras": ["confidence", "contours"]})
    assert run(more, images, good_package).done == 6
    sure = np.asarray(Image.open(OUT / "confidence/one.png"))
    assert sure.shape == (48, 64)
    assert sure.min() > 255 // 4
    shapes = json.loads((OUT / "contours/one.geojson").read_text())["features"]
    mask = np.asarray(Image.open(OUT / "masks/one.png"))
    assert len(shapes) == len(np.unique(mask))
    augmented = more.override({"predict.tta": ["flip"]})
    assert run(augmented, images, good_package).done == 6
    assert {row.tta for row in manifest.read(OUT).values()} == {"flip"}
    assert run(augmented, images, good_package).kept == 6


def test_probabilities_and_coco_of_class_maps(
    project: Params, images: Path, good_package: Path
) -> None:
    from faster_coco_eval import COCO
    from faster_coco_eval.core import mask as coco_mask

    run(project, images, good_package)
    more = project.override({"predict.extras": ["probabilities", "coco"]})
    assert run(more, images, good_package).done == 6
    mask = np.asarray(Image.open(OUT / "masks/one.png"))
    shares = np.load(OUT / "probabilities/one.npy")
    assert (shares.dtype, shares.shape[1:]) == (np.float16, mask.shape)
    assert np.allclose(shares.astype(float).sum(0), 1.0, atol=2e-3)
    largest = np.take_along_axis(shares, mask[None].astype(int), 0)[0]
    assert (largest >= shares.max(0) - 1e-3).all()

    coco = COCO(str(OUT / "coco.json"))
    assert len(coco.imgs) == 6
    for number, entry in coco.imgs.items():
        mask = np.asarray(Image.open(OUT / manifest.read(OUT)[entry["file_name"]].mask_path))
        drawn = np.full(mask.shape, 255, np.uint8)
        for one in coco.loadAnns(coco.getAnnIds(imgIds=number)):
            inside = coco_mask.decode(one["segmentation"]).astype(bool)
            drawn[inside] = one["category_id"]
            assert one["area"] == inside.sum()
            assert one["bbox"] == coco_mask.toBbox(one["segmentation"]).tolist()
        assert np.array_equal(drawn, mask)
    before = (OUT / "coco.json").read_bytes()
    assert run(more, images, good_package).kept == 6
    assert (OUT / "coco.json").read_bytes() == before


def test_one_machine_predicts_in_one_process_unless_it_has_accelerators(project: Params) -> None:
    assert project.predict.ray_min_images == "auto"
    several = describe_machine().accelerators > 1
    assert ray_min_images(project) == (500 if several else None)
    assert ray_min_images(project.override({"predict.ray_min_images": 7})) == 7


def test_bad_files_are_rows_with_a_reason(
    project: Params, images: Path, good_package: Path
) -> None:
    whole = (images / "one.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "text.png").write_text("no image")
    (images / "empty.jpg").write_bytes(b"")
    (images / "notes.md").write_text("notes")
    summary = run(project, images, good_package)
    assert summary.exit_code == SOME_FAILED
    assert (summary.done, len(summary.failed), summary.skipped) == (6, 3, 1)
    rows = manifest.read(OUT)
    for name in ("cut.png", "text.png", "empty.jpg"):
        row = rows[f"images/{name}"]
        assert (row.status, row.mask_path) == ("error", "")
        assert "cannot be read as an image" in row.reason
    assert rows["images/notes.md"].status == "skipped"
    (images / "cut.png").write_bytes(whole)
    assert run(project, images, good_package).done == 1


def test_prune_removes_what_is_no_longer_given(
    project: Params, images: Path, good_package: Path
) -> None:
    run(project, images, good_package, overlays=True)
    (images / "one.png").unlink()
    run(project, images, good_package, overlays=True)
    assert (OUT / "masks/one.png").exists()
    run(project, images, good_package, overlays=True, prune=True)
    assert not (OUT / "masks/one.png").exists()
    assert not (OUT / "overlays/one.jpg").exists()
    assert (OUT / "masks/b/one.png").exists()
    assert "images/one.png" not in manifest.read(OUT)


def test_shards_glob_list_and_single_image_are_inputs(
    project: Params, images: Path, painted_shards: Path, good_package: Path
) -> None:
    assert run(project, painted_shards / "test", good_package).done == 12
    mask = np.asarray(Image.open(OUT / "masks/test_003.png"))
    truth = open_shards(painted_shards).split("test").decode(3)[1]
    assert truth is not None
    assert np.mean(mask[1:] == truth[1:]) > 0.9

    assert {item.name for item in find_inputs("images/*.png")} == {"one", "two"}
    assert {item.name for item in find_inputs("images/**/*.png")} == {"b/one", "one", "two"}
    Path("list.txt").write_text("images/one.png\n# not this one\nimages/b/one.png\n")
    assert [item.name for item in find_inputs("list.txt")] == ["one", "b/one"]
    assert [item.name for item in find_inputs("images/two.jpg")] == ["two"]


def test_addresses_are_read_through_their_filesystem(project: Params, images: Path) -> None:
    found = list(find_inputs(f"file://{images.resolve()}"))
    assert [item.name for item in found if "one" in item.name] == ["b/one", "one"]
    item = next(item for item in found if item.name == "b/one")
    assert read_bytes(item) == (images / "b" / "one.png").read_bytes()


def test_outputs_inside_the_input_folder_are_not_inputs(
    project: Params, images: Path, good_package: Path
) -> None:
    out = images / "masks"
    for done in (6, 0):
        summary = predict(project, images="images", model=str(good_package), out=out, overlays=True)
        assert (summary.done, summary.skipped) == (done, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere", "nowhere does not exist"),
        ("nothing", "no images in nothing: give a folder"),
        ("nothing/*.png", r"no images in nothing/\*.png"),
    ],
)
def test_no_input_is_one_clear_error(
    project: Params, good_package: Path, given: str, message: str
) -> None:
    Path("nothing").mkdir()
    with pytest.raises(DataError, match=message):
        run(project, given, good_package)


def test_missing_model_is_one_clear_error(project: Params, images: Path) -> None:
    with pytest.raises(PackageError, match=r"nopackage/model\.\w+ cannot be read"):
        run(project, images, Path("nopackage"))


def test_unwritable_output_is_a_reason_not_a_crash(
    project: Params, images: Path, good_package: Path
) -> None:
    (OUT / "masks").mkdir(parents=True)
    (OUT / "masks" / "b").write_text("a file where a folder has to be")
    summary = run(project, images, good_package)
    assert {row.path for row in summary.failed} == {"images/b/one.png", "images/b/alpha.webp"}


def test_files_above_the_limit_are_refused_and_odd_ones_predicted(
    project: Params, images: Path, good_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (400, 300), (220, 60, 60)).save(images / "huge.png")
    for name, size in (("dot", (1, 1)), ("row", (4000, 1)), ("column", (1, 4000))):
        Image.new("RGB", size, (220, 60, 60)).save(images / f"{name}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48), (220, 60, 60)).save(images / "turned.png", exif=exif)
    # Above this, images wait for their turn undecoded.
    monkeypatch.setattr("pipelines.prediction.worker.LARGE_MEGAPIXELS", 0.0035)
    limited = project.override({"predict.max_megapixels": 0.1})
    summary = run(limited, images, good_package, overlays=True)
    assert (summary.done, len(summary.failed)) == (10, 1)
    assert summary.failed[0].path == "images/huge.png"
    assert "400 x 300 pixels are 0.12 megapixels, the limit is 0.1" in summary.failed[0].reason
    assert "predict.max_megapixels" in summary.failed[0].reason
    for name, size in (("dot", (1, 1)), ("row", (4000, 1)), ("turned", (48, 64))):
        assert Image.open(OUT / f"masks/{name}.png").size == size
        assert Image.open(OUT / f"overlays/{name}.jpg").size == size
    assert run(project, images, good_package, overlays=True).done == 1


def test_precision_is_part_of_what_made_a_result(
    project: Params, images: Path, good_package: Path
) -> None:
    assert run(project, images, good_package).done == 6
    assert {row.precision for row in manifest.read(OUT).values()} == {"fp32"}
    half = project.override({"predict.precision": "bf16", "predict.batch_size": "auto"})
    assert run(half, images, good_package).done == 6
    assert {row.precision for row in manifest.read(OUT).values()} == {"bf16"}
    assert run(half, images, good_package).kept == 6


def test_a_manifest_without_precision_is_of_fp32(
    project: Params, images: Path, good_package: Path
) -> None:
    run(project, images, good_package)
    table = pq.read_table(OUT / manifest.FILE)
    pq.write_table(table.drop_columns(["precision"]), OUT / manifest.FILE)
    assert run(project, images, good_package).kept == 6


def test_the_manifest_is_there_from_the_first_result_on(
    project: Params, images: Path, good_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = Worker.stream, []

    def stream(self: Worker, items: Any) -> Any:
        for row in real(self, items):
            seen.append(row.path)
            assert set(seen) <= manifest.read(OUT).keys()
            yield row
            assert (OUT / manifest.FILE).is_file()
            if len(seen) == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "stream", stream)
        with pytest.raises(KeyboardInterrupt):
            run(project, images, good_package)
    rows = manifest.read(OUT)
    assert {row.mask_path for row in rows.values()} == {
        path.relative_to(OUT).as_posix() for path in (OUT / "masks").rglob("*.png")
    }
    again = run(project, images, good_package)
    assert (again.done, again.kept) == (6 - len(rows), len(rows))
    assert not journal.exists(OUT)
    assert rows.items() <= manifest.read(OUT).items()


@pytest.mark.ray
def test_ray_data_gives_the_same_results(project: Params, images: Path, good_package: Path) -> None:
    (images / "text.png").write_text("no image")
    here = run(project, images, good_package, overlays=True)
    rows = manifest.read(OUT)
    files = contents()
    os.rename(OUT, "first")
    many = project.override({"predict.ray_min_images": 1})
    there = run(many, images, good_package, overlays=True)
    assert (here.done, len(here.failed)) == (there.done, len(there.failed)) == (6, 1)
    assert contents() == files
    for path, row in manifest.read(OUT).items():
        assert {**vars(row), "seconds": 0} == {**vars(rows[path]), "seconds": 0}


def contents() -> dict[str, bytes]:
    files = {
        str(path.relative_to(OUT)): path.read_bytes()
        for path in OUT.rglob("*")
        if path.suffix in (".png", ".jpg")
    }
    assert len(files) == 12
    assert all(Image.open(io.BytesIO(data)).size for data in files.values())
    return files
