"""Inputs, the model and results of a prediction in a bucket of a real S3 server."""

import io
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.params import Params
from pipelines.prediction.run import Summary, predict
from pipelines.storage import scratch
from segcore.data.place import Place
from segcore.data.published import publish
from segcore.data.shards import open_shards
from segcore.errors import PackageError


@pytest.fixture
def in_bucket(project: Params, painted_shards: Path, good_package: Path, bucket: str) -> Place:
    """Four images below images/, one file that is none, and a package below model/."""
    place, split = Place(bucket), open_shards(painted_shards).split("test")
    for index in range(4):
        buffer = io.BytesIO()
        Image.fromarray(split.decode(index)[0]).save(buffer, "PNG")
        place.write(f"images/{'deep/' * (index % 2)}{index}.png", buffer.getvalue())
    place.write("images/readme.txt", b"no image")
    for file in good_package.iterdir():
        place.upload(file, f"model/{file.name}")
    return place


def run(params: Params, images: Place | Path, model: Place, out: Place | Path) -> Summary:
    return predict(params, images=str(images), model=str(model), out=str(out), overlays=False)


def test_results_in_a_bucket_are_those_of_a_folder_and_are_made_once(
    project: Params, in_bucket: Place
) -> None:
    images, model, out = (in_bucket / name for name in ("images", "model", "out"))
    params = project.override({"cluster.storage": str(in_bucket / "runs")})
    first = run(params, images, model, out)
    assert (first.done, first.kept, first.skipped, first.exit_code) == (4, 0, 1, 0)
    run(params, images, model, Path("local"))
    local = {f.relative_to("local").as_posix() for f in Path("local").rglob("*") if f.is_file()}
    assert set(out.sizes()) == local
    masks = [name for name in local if name.startswith("masks/")]
    assert len(masks) == 4
    assert all(out.read(name) == Path("local", name).read_bytes() for name in masks)

    shutil.rmtree(scratch(params.cluster.storage))  # another machine
    before = {name: out.read(name) for name in masks}
    again = run(params, images, model, out)
    assert (again.done, again.kept) == (0, 4)
    out.write(masks[0], b"damaged")
    out.remove(masks[1])
    mended = run(params, images, model, out)
    assert (mended.done, mended.kept) == (2, 2)
    assert {name: out.read(name) for name in masks} == before
    rows = pq.read_table(io.BytesIO(out.read("manifest.parquet"))).to_pylist()
    assert sorted(row["status"] for row in rows) == ["ok"] * 4 + ["skipped"]
    secrets = (b"Secret0Key1Of2", b"AKIAPLANTEDKEY000001")
    files = [file.read_bytes() for file in Path().rglob("*") if file.is_file()]
    contents = [*(in_bucket.read(name) for name in in_bucket.sizes()), *files]
    assert not any(secret in content for secret in secrets for content in contents)


def test_pruning_removes_from_the_bucket(project: Params, in_bucket: Place) -> None:
    out = in_bucket / "out"
    run(project, in_bucket / "images", in_bucket / "model", out)
    (in_bucket / "images").remove("0.png")
    predict(
        project, images=str(in_bucket / "images"), model=str(in_bucket / "model"), out=str(out),
        overlays=False, prune=True,
    )  # fmt: skip
    assert sorted(name for name in out.sizes() if name.startswith("masks/")) == [
        "masks/2.png", "masks/deep/1.png", "masks/deep/3.png",
    ]  # fmt: skip


def test_shards_in_a_bucket_are_inputs(
    project: Params, in_bucket: Place, painted_shards: Path, tmp_path: Path
) -> None:
    shutil.copytree(painted_shards, tmp_path / "shards")
    place = publish(tmp_path / "shards", in_bucket / "shards")
    summary = run(project, place / "test", in_bucket / "model", Path("out"))
    assert summary.done == len(open_shards(tmp_path / "shards").split("test")) == 12


def test_a_prefix_without_a_package_is_refused(project: Params, in_bucket: Place) -> None:
    with pytest.raises(PackageError, match="is no model package"):
        run(project, in_bucket / "images", in_bucket / "images", Path("out"))
