"""The rules of CONTRIBUTING.md that a tool can check."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = sorted([*ROOT.glob("segcore/**/*.py"), *ROOT.glob("pipelines/**/*.py")])


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_are_short_and_say_what_they_are_for(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= 300
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not tree.body
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def test_segcore_imports_nothing_heavy_by_itself() -> None:
    code = "import sys, segcore; print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_resolve() -> None:
    import segcore

    for name in segcore.__all__:
        assert getattr(segcore, name) is not None


def test_lock_names_no_index_and_pins_every_hash() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert "index-url" not in lock
    requirements = [line for line in lock.splitlines() if "==" in line and line[0].isalnum()]
    assert len(requirements) > 100
    assert all(line.endswith("\\") for line in requirements)


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(ROOT)))
def test_nobody_asks_which_kind_of_task_it_is(file: Path) -> None:
    kinds = {"semantic", "instance", "panoptic", "semi_supervised"}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Compare):
            named = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            assert not named & kinds, f"line {node.lineno}: ask a Kind (segcore/tasks/kind.py)"
