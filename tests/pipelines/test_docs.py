"""The documentation: it builds without a warning, and the blocks marked to be run do run."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pipelines.conftest import CLASSES, PALETTE, REPOSITORY, paint
from tests.pipelines.test_pipeline import STAGES, TINY, clone, environment, repro, set_params

DOCS = REPOSITORY / "docs"
BLOCK = re.compile(r"^```\{\.(bash|python) \.run\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
AFTER = re.compile(r"^```\{\.(bash) \.trained\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
PAGES = sorted(page.name for page in DOCS.glob("*.md") if BLOCK.search(page.read_text()))
TRAINED = sorted(page.name for page in DOCS.glob("*.md") if AFTER.search(page.read_text()))
FOREIGN = re.compile(r"""<(?:script|img|iframe)[^>]* src=["']?(?:https?:)?//|<link[^>]*"""
                     r"""rel=["']?(?:stylesheet|preload|preconnect)[^>]*https?://""")  # fmt: skip


@pytest.fixture
def reader(tmp_path: Path, good_package: Path) -> Path:
    """A folder as the pages assume it: a trained package, photos, and masks of one's own."""
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/candidate").symlink_to(good_package)
    for folder in ("photos", "mine/images", "mine/masks"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "mine/classes.txt").write_text("\n".join(CLASSES))
    for name, seed in (("one", 0), ("two", 1)):
        Image.fromarray(paint(seed)[0]).save(tmp_path / f"photos/{name}.png")
    for seed in range(12):
        image, mask = paint(seed)
        Image.fromarray(image).save(tmp_path / f"mine/images/{seed}.png")
        label = Image.fromarray(np.where(mask == 255, 0, mask).astype(np.uint8)).convert("P")
        label.putpalette([value for color in PALETTE for value in color])
        label.save(tmp_path / f"mine/masks/{seed}.png")
    return tmp_path


def test_the_how_tos_have_blocks_that_run() -> None:
    assert {"export.md", "index.md", "lineage.md", "own-data.md", "serve.md"} <= set(PAGES)
    assert {"few-labels.md", "label-doctor.md", "objects.md", "registry.md"} <= set(TRAINED)


@pytest.mark.ray
@pytest.mark.parametrize("page", PAGES)
def test_marked_blocks_run_in_order(reader: Path, page: str) -> None:
    run_blocks(BLOCK, page, reader)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which a small pipeline has run."""
    folder = clone(tmp_path_factory.mktemp("pages") / "segcore")
    set_params(folder, **{**TINY, "tune.trials": 0, "train.epochs": 1})
    assert repro(folder) == STAGES
    subprocess.run(["git", "add", "params.yaml", "dvc.lock"], cwd=folder, check=True)
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *author, "commit", "-qm", "small"], cwd=folder, check=True)
    return folder


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", TRAINED)
def test_blocks_of_a_trained_pipeline_run_in_order(trained: Path, page: str) -> None:
    subprocess.run(["git", "checkout", "params.yaml", "dvc.lock"], cwd=trained, check=True)
    run_blocks(AFTER, page, trained)


def run_blocks(pattern: re.Pattern[str], page: str, folder: Path) -> None:
    for language, block in pattern.findall((DOCS / page).read_text()):
        done = subprocess.run(
            [*RUN[language], block],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in ("index", "own-data", "architectures", "losses", "library", "serve"):
        assert (site / f"{page}.html").is_file()
    for page in site.rglob("*.html"):
        assert not FOREIGN.search(page.read_text()), page
    assert "create_model" in (site / "library.html").read_text()
    assert "58.9" in (site / "architectures.html").read_text()  # FC-DenseNet56 on CamVid, published
    assert "linknet" in (site / "search/search_index.json").read_text()
