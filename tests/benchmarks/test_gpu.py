"""What a GPU would be asked runs on a CPU, with `segcore` alone."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import results
from benchmarks.gpu.__main__ import PARTS, main
from benchmarks.gpu.bench import LITERATURE, Bench, Noise, relative
from benchmarks.literature.recipes import flat_names

ROOT = Path(__file__).parents[2]
FORBIDDEN = ["dvc", "mlflow", "pipelines", "pydantic", "ray", "yaml"]
DRY_RUN = """
import sys
from benchmarks.gpu.__main__ import main

if __name__ == "__main__":
    main(["--dry-run", "--out", {out!r}])
    print("loaded", [name for name in {forbidden} if name in sys.modules])
"""


@pytest.mark.parametrize("folder", ["gpu", "literature"])
def test_modules_of_a_gpu_host_import_segcore_alone(folder: str) -> None:
    allowed = {"benchmarks", "segcore", "torch", "numpy", "pyarrow", *sys.stdlib_module_names}
    for file in (ROOT / "benchmarks" / folder).glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            assert {name.split(".")[0] for name in modules} <= allowed, file


def test_every_architecture_is_asked_about_and_the_literature_first(tmp_path: Path) -> None:
    bench = Bench(device="cuda", dry=False, shards=tmp_path, out=tmp_path, row_minutes=1.5)
    assert sorted(bench.names) == flat_names()
    assert bench.names[: len(LITERATURE)] == LITERATURE


def test_ranks_share_a_batch() -> None:
    whole = Noise((8, 8), 4, 3).make(5)
    parts = [Noise((8, 8), 4, 3, rank=rank, world_size=2).make(5) for rank in range(2)]
    for key, value in whole.items():
        assert [part[key].tolist() for part in parts] == [value[:2].tolist(), value[2:].tolist()]
    assert relative([whole["target"]], [whole["target"]]) == 0.0


def test_without_a_gpu_it_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--shards", str(tmp_path / "none")]) == 2
    assert "--pack" in capsys.readouterr().err


def test_parts_are_measured_once(tmp_path: Path) -> None:
    given = ["--dry-run", "--out", str(tmp_path), "--only", "precision", "predict", "trained"]
    assert main(given) == 0
    rows = results.read(tmp_path)
    assert not [row for row in rows if "error" in row["figures"]]
    found = {(row["part"], row["row"]): row["figures"] for row in rows}
    gradient = found["precision", "unet_small"]
    assert 0 < gradient["fp16 gradient off"] < gradient["bf16 gradient off"] < 0.1
    assert found["trained", "fcn_small, 0.01 minutes"]["steps"] >= 1
    assert (tmp_path / "literature-streets.md").is_file()
    text = (tmp_path / "gpu.md").read_text()
    assert "## precision: CPU" in text
    assert main(given) == 0
    assert results.read(tmp_path) == rows


@pytest.mark.slow
def test_dry_run_answers_all_with_segcore_alone(tmp_path: Path) -> None:
    script = tmp_path / "dry.py"  # a file, so that the ranks it starts can import it
    script.write_text(DRY_RUN.format(out=str(tmp_path), forbidden=FORBIDDEN))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "loaded []"
    rows = json.loads((tmp_path / "gpu.json").read_text())
    assert {row["part"] for row in rows} == set(PARTS)
    assert not [row for row in rows if "error" in row["figures"]]
    assert not [row for row in rows if "not compiled" in row["figures"]]
    exact = {row["row"]: row["figures"] for row in rows if row["part"] == "exact"}
    assert exact["1 of gloo, batch norm"]["same bits"]
    two = exact["2 of gloo, no norm"]
    assert two["weights off"] < 1e-6 < 1e-3 < two["moved by training"]
    assert two["gradient off"] < 1e-5
