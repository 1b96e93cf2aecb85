"""dvc.yaml, params.yaml and the stages agree."""

import importlib
from pathlib import Path

import pytest
import yaml

from pipelines.params import Params

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("name", STAGES)
def test_stage_declares_the_params_it_reads(name: str) -> None:
    module = importlib.import_module(f"pipelines.{name}")
    assert set(module.READS) == set(STAGES[name]["params"])


@pytest.mark.parametrize("name", STAGES)
def test_declared_params_exist(name: str) -> None:
    Params.load(ROOT / "params.yaml").pick(STAGES[name]["params"])


@pytest.mark.parametrize("name", STAGES)
def test_code_dependencies_exist(name: str) -> None:
    own = [dep for dep in STAGES[name]["deps"] if dep.startswith(("segcore/", "pipelines/"))]
    assert f"pipelines/{name}.py" in own
    for dep in own:
        assert (ROOT / dep).exists(), dep


def test_each_stage_is_one_module() -> None:
    for name, stage in STAGES.items():
        assert stage["cmd"] == f"python -m pipelines.{name}"
