"""`segcore export`, and predict by the engines that run what it writes."""

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
from segcore.export import load_exported
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


def test_export_writes_a_checked_file(project: Params, good_package: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(good_package), "--out", "model"])
    assert result.exit_code == 0, result.output
    assert "model.onnx: same class on 100 % of the pixels at 75x101" in result.output
    assert load_exported("model.onnx").digest == package_digest(good_package)
    result = CliRunner().invoke(app, ["export", str(good_package), "--to", "tflite"])
    assert result.exit_code == 1
    assert "unknown format 'tflite'" in result.output


def test_engines_predict_what_torch_does_and_are_told_apart(
    project: Params, images: Path, good_package: Path
) -> None:
    def run(engine: str, params: Params = project) -> int:
        summary = predict(
            params,
            images=str(images),
            model=str(good_package),
            out=OUT,
            overlays=False,
            engine=engine,
        )
        assert not summary.failed
        return summary.done

    assert run("torch") == 3
    masks = {path.name: np.asarray(Image.open(path)) for path in OUT.glob("masks/*.png")}
    for engine in ("onnxruntime", "openvino"):
        assert run(engine) == 3
        assert {row.engine for row in manifest.read(OUT).values()} == {engine}
        assert run(engine) == 0
        assert png_facts.read(OUT / "masks" / "0.png")["engine"] == engine  # type: ignore[index]
        assert verify(project, OUT).faults == []
        for name, mask in masks.items():
            assert np.mean(np.asarray(Image.open(OUT / "masks" / name)) == mask) >= 0.999
    auto = project.override({"predict.precision": "auto"})
    run("onnxruntime", auto)
    assert {row.precision for row in manifest.read(OUT).values()} == {"fp32"}
    with pytest.raises(OptionError, match="onnxruntime computes exported files at fp32, not bf16"):
        run("onnxruntime", project.override({"predict.precision": "bf16"}))
    with pytest.raises(UnknownNameError, match="unknown engine 'tensorrt'"):
        run("tensorrt")
