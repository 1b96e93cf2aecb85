"""A folder as people have them, every stage, and nothing set but where it lies."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tests.pipelines.test_pipeline import clone, environment

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
PICTURES = 40
MINUTES = 0.15


def paint(folder: Path) -> None:
    """40 pictures of unlike sizes: RGB, grey and 16-bit grey; one class in a few of them."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(PICTURES):
        height, width = (int(side) for side in rng.integers(60, 130, 2))
        mask = np.zeros((height, width), np.uint8)
        mask[height // 3 :, : width // 2] = 1
        if number % 8 == 0:
            mask[4:10, 4:14] = 2
        grey = np.choose(mask, [60, 130, 220]) + rng.normal(0, 8, mask.shape)
        pixels: np.ndarray = np.clip(grey, 0, 255).astype(np.uint8)
        if number % 3 == 0:
            pixels = np.stack([pixels, pixels // 2, 255 - pixels], axis=-1)
        elif number % 3 == 1:
            pixels = pixels.astype(np.uint16) * 200
        Image.fromarray(pixels).save(folder / "images" / f"{number:02d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:02d}.png")
    (folder / "classes.txt").write_text("ground\nleaf\nspot\n")


def test_mixed_folder_goes_through_every_stage_with_nothing_set(tmp_path: Path) -> None:
    paint(tmp_path / "garden")
    repo = clone(tmp_path / "segcore")
    subprocess.run(["git", "add", "-A"], cwd=repo, check=True)
    save = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "t"]
    subprocess.run([*save, "--allow-empty"], cwd=repo, check=True)
    values = ["data.name=folder", f"data.path={tmp_path / 'garden'}"]
    values.append(f"train.budget_minutes={MINUTES}")  # a person would wait for the planned ones
    command = ["dvc", "exp", "run", *(part for value in values for part in ("-S", value))]
    person = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t"}
    person |= {"GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t"}
    where = {**environment(), **person}
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, env=where)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert "Traceback" not in done.stderr

    plan = yaml.safe_load((repo / "outputs/plan.yaml").read_text())["decisions"]
    assert plan["train.augment.crop"]["value"] is not None, "unlike sizes are cropped"
    assert plan["train.augment.class_crops"]["value"] > 0, "spots are rare"
    metrics = json.loads((repo / "outputs/report/metrics.json").read_text())
    assert set(metrics["iou"]) == {"ground", "leaf", "spot"}
    assert 0 < metrics["miou"] < 1
    rows = pq.read_table(repo / "outputs/predictions/manifest.parquet").to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    for row in rows:
        mask = Image.open(repo / "outputs/predictions" / row["mask_path"])
        assert (mask.height, mask.width) == (row["height"], row["width"])
    assert len({(row["height"], row["width"]) for row in rows}) > 1
    assert "why" in (repo / "outputs/report/index.html").read_text().lower()
