"""`segcore export`, and predict by the engines that run what it writes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.params import Params
from pipelines.prediction import manifest, png_facts
from pipelines.prediction.run import predict
from pipelines.prediction.verify import verify
from segcore.errors import OptionError, UnknownNameError
from segcore.export import ENGINES, load_exported
from segcore.package import package_digest
from tests.pipelines.conftest import paint

OUT = Path("out")


@pytest.fixture
def images(project: Params) -> Path:
    folder = Path("images")
    folder.mkdir()
    for seed in range(3):
        pixels, _ = paint(seed)
        Image.fromarray(pixels[: 48 - 5 * seed]).save(folder / f"{seed}.png")
    return folder


@pytest.fixture
def run(
    project: Params, images: Path, good_package: Path
) -> Callable[..., dict[str, manifest.Row]]:
    """Predict by an engine; the rows of what was not there yet."""

    def run(engine: str, **changes: str) -> dict[str, manifest.Row]:
        params = project.override({f"predict.{key}": value for key, value in changes.items()})
        model, given = str(good_package), str(images)
        before = manifest.read(OUT)
        predict(params, images=given, model=model, out=OUT, overlays=False, engine=engine)
        return {path: row for path, row in manifest.read(OUT).items() if before.get(path) != row}

    return run


def test_export_writes_a_checked_file(project: Params, good_package: Path) -> None:
    arguments = ["export", str(good_package), "--to", "torch-export", "--out", "model"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "model.pt2: same class on 100 % of the pixels at 75x101" in result.output
    assert load_exported("model.pt2").digest == package_digest(good_package)
    result = CliRunner().invoke(app, ["export", str(good_package), "--to", "tflite"])
    assert result.exit_code == 1
    assert "unknown format 'tflite'" in result.output


@pytest.mark.parametrize(
    "engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)]
)
def test_an_engine_predicts_what_torch_does_and_is_told_apart(
    project: Params, run: Callable[..., dict[str, manifest.Row]], engine: str
) -> None:
    assert len(run("torch")) == 3
    masks = {path: np.asarray(Image.open(path)) for path in OUT.glob("masks/*.png")}
    rows = run(engine)
    assert [(row.engine, row.status) for row in rows.values()] == [(engine, "ok")] * 3
    assert not run(engine)
    for path, mask in masks.items():
        assert np.mean(np.asarray(Image.open(path)) == mask) >= 0.999
        assert (png_facts.read(path) or {})["engine"] == engine
    assert verify(project, OUT).faults == []
    automatic = run(engine, precision="auto").values()
    assert {row.precision for row in automatic} <= set(ENGINES[engine][1])


def test_engines_refuse_what_they_do_not_compute(
    run: Callable[..., dict[str, manifest.Row]],
) -> None:
    with pytest.raises(OptionError, match="onnxruntime computes exported files at fp32, not bf16"):
        run("onnxruntime", precision="bf16")
    with pytest.raises(UnknownNameError, match="unknown engine 'tensorrt'"):
        run("tensorrt")
