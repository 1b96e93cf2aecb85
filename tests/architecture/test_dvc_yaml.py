"""dvc.yaml, params.yaml and the stages agree."""

import ast
from pathlib import Path

import pytest
import yaml

from pipelines.params import Params
from pipelines.planning.rules import RULES

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# Where things run and are recorded, and how fast they are read: a change does not change results.
WITHOUT_EFFECT = {"cluster", "tracking", "data.cache", "train.loader_workers"}
SECTIONS = set(Params.model_fields)
# Modules of which a stage uses a part that does not read all that the module reads: splits do not
# change what download fetches, and a trial is no registered model.
PARTLY_USED = {"download": {"sources"}, "plan": {"sources"}, "tune": {"train"}}
# How work is run and recorded: a change does not change results.
INFRASTRUCTURE = {
    "cluster",
    "tracking",
    "params",
    "storage",
    "mirror",
    "stage",
    "progress",
    "errors",
}


def files_of(module: str) -> list[Path]:
    """The file of a module of pipelines/, or those of a room."""
    place = ROOT / "pipelines" / module
    return sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]


def imported_pipelines(tree: ast.Module) -> set[str]:
    """Modules at the top of pipelines/, and its rooms, that a module imports."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "pipelines":
                names |= {alias.name for alias in node.names}
            elif node.module.startswith("pipelines."):
                names.add(node.module.split(".")[1])
    return {name for name in names if files_of(name) and files_of(name)[0].is_file()}


def modules_of(stage: str) -> dict[str, list[ast.Module]]:
    """The stage's module and what it imports of pipelines/, less what changes no result."""
    found: dict[str, list[ast.Module]] = {}
    left = [stage]
    while left:
        name = left.pop()
        if name not in found:
            found[name] = [ast.parse(file.read_text()) for file in files_of(name)]
            for tree in found[name]:
                left += imported_pipelines(tree) - INFRASTRUCTURE
    return found


def read_params(tree: ast.Module) -> set[str]:
    """Dotted keys that a module reads from a variable `params`, through local names as well."""
    aliases: dict[str, str] = {}
    aliased: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and (key := section(node.value)):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    aliases[target.id] = key
                    aliased.add(node.value)
    keys: set[str] = set()
    inner: set[ast.AST] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        if parent := section(node.value):
            inner.add(node.value)
            keys.add(f"{parent}.{node.attr}")
        elif isinstance(node.value, ast.Name) and node.value.id in aliases:
            keys.add(f"{aliases[node.value.id]}.{node.attr}")
    whole = {
        key
        for node in ast.walk(tree)
        if (key := section(node)) and node not in inner and node not in aliased
    }
    return keys | whole


def section(node: ast.AST) -> str | None:
    """The name of the section if the node is `params.<section>`."""
    is_params = (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "params"
        and node.attr in SECTIONS
    )
    return node.attr if is_params and isinstance(node, ast.Attribute) else None


@pytest.mark.parametrize("name", STAGES)
def test_stage_declares_every_parameter_that_changes_its_result(name: str) -> None:
    declared = set(STAGES[name]["params"])
    for module, trees in modules_of(name).items():
        if module in PARTLY_USED.get(name, set()):
            continue
        for key in set().union(*map(read_params, trees)):
            covered = {key, key.split(".")[0]} & (declared | WITHOUT_EFFECT)
            assert covered, f"pipelines/{module} reads {key}, stage {name} does not declare it"


@pytest.mark.parametrize("name", STAGES)
def test_stage_reads_what_it_declares(name: str) -> None:
    trees = [tree for found in modules_of(name).values() for tree in found]
    read = set().union(*map(read_params, trees))
    if name == "plan":
        read |= set(RULES)  # it reads what it decides, by key
    sections = {key.split(".")[0] for key in read}
    for key in STAGES[name]["params"]:
        assert key in read | sections or key.split(".")[0] in read, f"{name} never reads {key}"


@pytest.mark.parametrize("name", STAGES)
def test_declared_params_exist(name: str) -> None:
    Params.load(ROOT / "params.yaml").pick(STAGES[name]["params"])


@pytest.mark.parametrize("name", STAGES)
def test_code_dependencies_exist_and_hold_the_stage(name: str) -> None:
    own = [dep for dep in STAGES[name]["deps"] if dep.startswith(("segcore/", "pipelines/"))]
    for module in modules_of(name):
        suffix = "" if (ROOT / "pipelines" / module).is_dir() else ".py"
        assert f"pipelines/{module}{suffix}" in own, f"stage {name} runs pipelines/{module}"
    for dep in own:
        assert (ROOT / dep).exists(), dep


def test_each_stage_is_one_module() -> None:
    for name, stage in STAGES.items():
        assert stage["cmd"] == f"python -m pipelines.{name}"
