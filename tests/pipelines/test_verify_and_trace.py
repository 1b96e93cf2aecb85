"""What a mask and its manifest say of each other, and the way back to the commit."""

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.params import Params
from pipelines.prediction import manifest, png_facts
from pipelines.prediction.run import predict
from pipelines.prediction.verify import verify
from pipelines.trace import CONTRADICTED, OPEN, VERIFIED, trace
from pipelines.tracking.history import Evidence
from pipelines.tracking.registry import CHAMPION, Registry
from pipelines.tracking.run import open_run
from segcore.datasets.archive import tree_digest
from segcore.datasets.origin import read_origin
from segcore.errors import DataError

OUT = Path("out")
NAMES = ("a", "b", "c")


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 3, (7, 9), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that examples share."""
    return tmp_path_factory.mktemp("facts")


@pytest.fixture
def masks(project: Params, painted_shards: Path, good_package: Path) -> Path:
    """Three masks of a package, in a project with pictures."""
    Path("images").mkdir()
    for index, name in enumerate(NAMES):
        pixels = np.random.default_rng(index).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"images/{name}.png")
    shutil.copytree(good_package, "package")
    predict(project, images="images", model="package", out=OUT, overlays=True)
    return OUT / "masks"


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=9), st.text(max_size=30) | st.floats(0, 1), max_size=5))
def test_facts_of_a_png_are_read_as_they_were_written(
    place: Path, facts: dict[str, object]
) -> None:
    path = place / "facts.png"
    path.write_bytes(png_facts.embed(png(), facts))
    assert png_facts.read(path) == facts
    with Image.open(path) as image, Image.open(io.BytesIO(png())) as plain:
        assert image.tobytes() == plain.tobytes()


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 150))
def test_facts_of_a_broken_png_are_none_or_what_was_written(
    place: Path, noise: bytes, at: int
) -> None:
    whole = png_facts.embed(png(), {"a": 1})
    path = place / "broken.png"
    path.write_bytes(whole[:at] + noise + whole[at + len(noise) :])
    assert png_facts.read(path) in (None, {"a": 1})


def test_untouched_outputs_pass(project: Params, masks: Path) -> None:
    found = verify(project, OUT)
    assert (found.checked, found.faults, found.open, found.exit_code) == (3, [], [], 0)
    row = manifest.read(OUT)["images/a.png"]
    assert set(row.files) == {"masks/a.png", "overlays/a.jpg"}
    assert row.channel_means == pytest.approx(
        tuple(np.asarray(Image.open("images/a.png")).reshape(-1, 3).mean(0) / 255)
    )
    assert row.channel_stds == pytest.approx(
        tuple(np.asarray(Image.open("images/a.png")).reshape(-1, 3).std(0) / 255)
    )


def test_whatever_was_changed_is_named(project: Params, masks: Path) -> None:
    (masks / "a.png").write_bytes((masks / "b.png").read_bytes())
    (OUT / "overlays" / "b.jpg").unlink()
    (masks / "stray.png").write_bytes(png())
    Path("images/c.png").write_bytes(png())
    Path("images/b.png").unlink()
    found = verify(project, OUT)
    reasons = {name: why for name, why in found.faults if "says other things" not in why}
    assert reasons.keys() == {"masks/a.png", "overlays/b.jpg", "masks/stray.png", "images/c.png"}
    assert "not what was written" in reasons["masks/a.png"]
    assert "missing" in reasons["overlays/b.jpg"]
    assert "no row" in reasons["masks/stray.png"]
    other = [why for name, why in found.faults if "says other things" in why]
    assert other == ["it says other things of how it was made: input, input_sha256"]
    assert [name for name, _ in found.open] == ["images/b.png"]
    assert (found.checked, found.exit_code) == (1, 3)
    # What is wrong is what the next run makes again.
    Image.new("RGB", (64, 48)).save("images/b.png")
    again = predict(project, images="images", model="package", out=OUT, overlays=True)
    assert again.done == 3
    assert [name for name, _ in verify(project, OUT).faults] == ["masks/stray.png"]


def test_other_package_and_other_options_are_seen(
    project: Params, masks: Path, bad_package: Path
) -> None:
    shutil.rmtree("package")
    shutil.copytree(bad_package, "package")
    assert "took the place" in verify(project, OUT).open[0][1]
    shutil.rmtree("package")
    assert "is not there" in verify(project, OUT).open[0][1]
    table = pq.read_table(OUT / manifest.FILE)
    column = table.schema.get_field_index("precision")
    changed = table.set_column(column, "precision", pa.array(["bf16"] * 3))
    pq.write_table(changed, OUT / manifest.FILE)
    reasons = [why for _, why in verify(project, OUT).faults]
    assert reasons == ["it says other things of how it was made: precision"] * 3


def test_command_verifies_and_traces(project: Params, masks: Path) -> None:
    result = CliRunner().invoke(app, ["predict", "--verify", "out"])
    assert (result.exit_code, "3 results are as" in result.output) == (0, True), result.output
    (masks / "a.png").write_bytes(png())
    result = CliRunner().invoke(app, ["predict", "--verify", "out"])
    assert result.exit_code == 3
    assert "masks/a.png: its content is not what was written" in result.output
    result = CliRunner().invoke(app, ["predict", "images", "--out", "x"])
    assert result.exit_code == 1
    assert "give IMAGES, --model and --out, or --verify OUT alone" in result.output
    store = ["--tracking-uri", "sqlite:///none.db"]
    result = CliRunner().invoke(app, ["trace", "out/masks/b.png", *store])
    assert result.exit_code == 0, result.output
    assert "images/b.png" in result.output
    assert not Path("none.db").exists()
    assert CliRunner().invoke(app, ["trace", "out/masks/a.png", *store]).exit_code == 3


def test_a_mask_that_says_nothing_is_one_error(project: Params, tmp_path: Path) -> None:
    Path("plain.png").write_bytes(png())
    with pytest.raises(DataError, match="holds no facts"):
        trace(project, Path("plain.png"))
    with pytest.raises(DataError, match=r"none\.png does not exist"):
        trace(project, Path("none.png"))
    with pytest.raises(DataError, match=r"no manifest\.parquet in"):
        verify(project, tmp_path)


def test_origin_of_raw_files_is_known_by_digest(tmp_path: Path) -> None:
    assert read_origin(tmp_path) == {}
    (tmp_path / "source.json").write_text('{"path": "/x", "files": {"b": "1", "a": "2"}}')
    assert read_origin(tmp_path) == {
        "origin": "folder", "digest": tree_digest({"a": "2", "b": "1"})
    }  # fmt: skip
    (tmp_path / "source.json").write_text('{"origin": "https://x", "files_sha256": "ab"}')
    assert read_origin(tmp_path) == {"origin": "https://x", "digest": "ab"}
    (tmp_path / "source.json").write_text('{"origin": "page", "listing_sha256": "cd"}')
    assert read_origin(tmp_path) == {"origin": "page", "digest": "cd"}
    for broken in ("[1]", "{}", "no json", '{"files": 3}'):
        (tmp_path / "source.json").write_text(broken)
        assert read_origin(tmp_path) == {}


@pytest.mark.ray
def test_trace_goes_back_to_the_commit_and_says_what_is_gone(
    project: Params, masks: Path, good_package: Path, painted_shards: Path
) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "start"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, check=True)
    shutil.copytree(painted_shards, "data/shards/painted")
    with open_run("train", project, name="unet") as run:
        registry = Registry(project)
        registry.promote(registry.register(good_package, run.id), Evidence("the first"))
    uri = f"models:/segcore-painted@{CHAMPION}"
    predict(project, images="images", model=uri, out=Path("of_champion"), overlays=False)
    mask = Path("of_champion/masks/a.png")
    links = {link.name: link for link in trace(project, mask)}
    states = {name: link.state for name, link in links.items()}
    assert states.pop("archive") == OPEN  # these shards were not made of raw files
    assert set(states.values()) == {VERIFIED}, links
    assert list(links) == [
        "mask", "row", "input", "version", "run", "plan", "shards", "archive", "commit"
    ]  # fmt: skip
    assert links["commit"].value == head.stdout.decode().strip()
    assert links["run"].value.startswith(run.id)
    assert "models:/segcore-painted/1" in links["version"].value

    # Of a package's folder, the registry knows the rest by the digest.
    links = {link.name: link for link in trace(project, masks / "a.png")}
    assert (links["run"].state, links["commit"].state) == (VERIFIED, VERIFIED)
    assert links["run"].value.startswith(run.id)

    # The mask alone, elsewhere, when everything else is gone.
    shutil.copy(mask, "alone.png")
    for folder in ("data", "of_champion", ".git"):
        shutil.rmtree(folder)
    gone = project.override({"tracking.uri": "sqlite:///gone.db"})
    links = {link.name: link for link in trace(gone, Path("alone.png"))}
    assert {link.state for link in links.values()} == {OPEN}
    assert links["commit"].value == head.stdout.decode().strip()
    assert links["run"].value == run.id

    # Another mask under the same name.
    predict(project, images="images", model=uri, out=Path("of_champion"), overlays=False)
    shutil.copy(Path("of_champion/masks/b.png"), mask)
    states = {link.name: link.state for link in trace(project, mask)}
    assert (states["mask"], states["row"]) == (CONTRADICTED, CONTRADICTED)
