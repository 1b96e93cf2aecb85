"""The whole pipeline in a fresh clone: it runs, then nothing runs, then only what must."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.params import Params

ROOT = Path(__file__).parents[2]
TINY = {
    "data.options": {"num_train": 12, "num_val": 4, "num_test": 6, "height": 64, "width": 96},
    "train.epochs": 2,
    "train.batch_size": 4,
    "tune.trials": 1,
    "tune.epochs": 1,
    "evaluate.promote.resamples": 200,
}
STAGES = ["download", "prepare", "plan", "tune", "train", "evaluate", "predict"]

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def clone(to: Path) -> Path:
    """A clone of this repository, with the working tree's uncommitted changes on top."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(to)], check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-mo", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    return to


def set_params(repo: Path, **values: object) -> None:
    params = Params.load(repo / "params.yaml").override(values)
    (repo / "params.yaml").write_text(yaml.safe_dump(params.dump()))


def environment() -> dict[str, str]:
    """That of a person's shell: MLflow leaves its addresses in the environment of this process."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "SEGCORE_"))}
    return {**clean, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def repro(repo: Path) -> list[str]:
    """Run `dvc repro`; the stages that ran, in order."""
    command = ["dvc", "repro"]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return [
        line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")
    ]


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = clone(tmp_path_factory.mktemp("clone") / "segcore")
    set_params(folder, **TINY)
    assert repro(folder) == STAGES
    return folder


def test_everything_is_there(repo: Path) -> None:
    metrics = json.loads((repo / "outputs/report/metrics.json").read_text())
    assert 0.0 < metrics["miou"] < 1.0
    assert (repo / "outputs/candidate/model.safetensors").is_file()
    assert len(list((repo / "outputs/predictions/masks").rglob("*.png"))) == 6
    assert "data:image/png;base64" in (repo / "outputs/report/index.html").read_text()


def test_nothing_is_written_outside_the_ignored_places(repo: Path) -> None:
    status = subprocess.run(
        ["git", "status", "--porcelain", "-uall"], cwd=repo, capture_output=True, text=True
    )
    ours = {"params.yaml", "dvc.lock"}
    base = subprocess.run(
        ["git", "ls-files", "-mo", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    new = {line[3:] for line in status.stdout.splitlines()} - set(base.stdout.splitlines())
    assert new <= ours


def test_second_time_nothing_runs(repo: Path) -> None:
    # They look at your files and at the machine each time, and find them as before.
    assert repro(repo) == ["download", "plan"]


def test_only_the_stages_that_depend_on_a_parameter_run(repo: Path) -> None:
    set_params(repo, **{"predict.overlays": False})
    assert repro(repo) == ["download", "plan", "predict"]
    set_params(repo, **{"evaluate.promote.confidence": 0.9})
    assert "evaluate" in (ran := repro(repo))
    assert set(ran) <= {"download", "plan", "evaluate", "predict"}


def test_champion_loads_by_plain_pyfunc_elsewhere(repo: Path, tmp_path: Path) -> None:
    code = (
        "import sys, numpy, mlflow\n"
        f"mlflow.set_tracking_uri('sqlite:///{repo}/mlflow.db')\n"
        "model = mlflow.pyfunc.load_model('models:/segcore-streets@champion')\n"
        "images = numpy.zeros((2, 70, 90, 3), dtype=numpy.uint8)\n"
        "masks = model.predict(images)\n"
        "assert masks.shape == (2, 70, 90), masks.shape\n"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'pipelines']\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr[-3000:]
