"""The `segcore` command as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.params import Params


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_answers_at_once_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['segcore', '--help']\n"
        "from pipelines.cli import app\n"
        "try: app()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'ray', 'mlflow', 'numpy', 'pyarrow', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for name in ("predict", "trace", "models", "losses", "datasets"):
        assert name in result.stdout


@pytest.mark.parametrize("name", ["models", "losses", "datasets"])
def test_lists_name_what_is_registered(name: str) -> None:
    result = CliRunner().invoke(app, [name])
    assert result.exit_code == 0, result.output
    expected = {"models": "linknet", "losses": "cross_entropy", "datasets": "streets"}
    assert expected[name] in result.output


def test_predict_writes_masks_and_reports(project: Params, good_package: Path) -> None:
    Path("images").mkdir()
    Image.new("RGB", (64, 48), (220, 60, 60)).save("images/red.png")
    arguments = ["predict", "images", "--model", str(good_package), "--out", "masks"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "1 predicted, 0 already there" in result.output
    assert Path("masks/masks/red.png").is_file()
    every = [*arguments, "--format", "mask,probabilities, coco,geojson"]
    assert CliRunner().invoke(app, every).exit_code == 0
    for name in ("masks/red.png", "probabilities/red.npy", "coco.json", "contours/red.geojson"):
        assert (Path("masks") / name).is_file()
    refused = CliRunner().invoke(app, [*arguments, "--format", "cocoa"])
    assert refused.exit_code == 1
    assert "cocoa" in refused.output
    assert "coco" in refused.output.replace("cocoa", "")
    Path("images/bad.png").write_text("no image")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 3
    assert "1 already there, 1 failed" in result.output
    assert "images/bad.png: cannot be read as an image" in result.output


def test_errors_are_one_message_and_code_1(project: Params) -> None:
    result = command("predict", "nowhere", "--model", "nopackage", "--out", "masks")
    assert result.returncode == 1
    assert result.stderr == "error: nowhere does not exist: check the path of the images\n"
    assert result.stdout == ""


@pytest.mark.parametrize("module", ["evaluate", "predict"])
def test_stages_refuse_wrong_params_before_anything_heavy_is_loaded(
    project: Params, module: str
) -> None:
    Path("params.yaml").write_text("train: {lrr: 1}\n")
    code = (
        f"import sys; from pipelines import {module}\n"
        f"try: {module}.main()\n"
        "except Exception as error: assert 'params.yaml' in str(error), error\n"
        "assert not {'torch', 'ray', 'mlflow'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_wrong_params_file_is_one_message(project: Params) -> None:
    Path("params.yaml").write_text("train: {lrr: 1}\n")
    result = CliRunner().invoke(app, ["predict", "x", "--model", "y", "--out", "z"])
    assert result.exit_code == 1
    assert "params.yaml" in result.output
