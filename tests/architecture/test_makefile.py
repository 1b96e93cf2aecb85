"""What `make` prints is what a person reads."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_last_hints_of_repro_are_one_block() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make on this machine")
    # Under `make test` this make is a nested one, which would say so between the lines.
    command = [make, "--dry-run", "--no-print-directory", "repro"]
    recipe = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    hints = recipe[recipe.index("printf '%s") :].removesuffix("\n")
    printed = subprocess.run(["sh", "-c", hints], capture_output=True, text=True, check=True)
    lines = printed.stdout.split("\n")
    assert lines[:2] == ["", "Where to look next:"]
    assert all(line.startswith("  ") for line in lines[2:-1])
    assert len(lines) > 4
