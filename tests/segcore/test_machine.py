"""What a process learns of its machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from segcore import machine
from segcore.machine import (
    GIB,
    Machine,
    available_memory_gib,
    choose_loader_workers,
    describe_machine,
)


def test_this_machine_is_described() -> None:
    found = describe_machine()
    assert found.device in ("cpu", "cuda")
    assert found.name
    assert found.cores >= 1
    assert (found.accelerators > 0) == (found.device == "cuda")
    assert 0.1 < found.memory_gib < 2**20
    assert 0 < available_memory_gib() < 2**20
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


@pytest.mark.skipif(os.path.exists("/dev/nvidia0") or os.path.exists("/dev/kfd"), reason="has one")
def test_torch_is_not_imported_without_an_accelerator() -> None:
    code = (
        "import sys; from segcore.machine import describe_machine; describe_machine();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("flags", "fast"), [("fpu avx2", False), ("fpu avx512_bf16", True), ("amx_bf16", True)]
)
def test_flags_and_container_limit_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, fast: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nmodel name : A 1\nflags : {flags}\n\nx : 1")
    (tmp_path / "meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n")
    (tmp_path / "memory.max").write_text(str(int(3 * GIB)))
    (tmp_path / "memory.current").write_text(str(int(2 * GIB)))
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {int(GIB)}\n")
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_DEVICES", ())
    found = describe_machine()
    assert (found.name, found.fast_bf16, found.memory_gib) == ("A 1", fast, 3.0)
    assert available_memory_gib() == 2.0
    (tmp_path / "memory.max").write_text("max\n")
    assert describe_machine().memory_gib == 8.0
    assert available_memory_gib() == 4.0


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
def test_memory_that_was_freed_is_not_asked_of_the_kernel_again() -> None:
    code = (
        "import resource, sys, torch\n"
        "from segcore.machine import keep_freed_memory\n"
        "kept = keep_freed_memory() if sys.argv[1] == 'keep' else True\n"
        "def step(): return float(torch.ones(16, 1 << 20).sum())\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(10): step()\n"
        "before = faults(); step(); step()\n"
        "print(kept, faults() - before)"
    )
    found = {}
    for mode in ("keep", "plain"):
        command = [sys.executable, "-c", code, mode]
        kept, pages = subprocess.run(command, capture_output=True, text=True).stdout.split()
        if kept != "True":
            pytest.skip("this C library has no mallopt")
        found[mode] = int(pages)
    assert found["keep"] < 100 < found["plain"]


@pytest.mark.parametrize(
    ("cores", "cards", "threads"), [(2, 0, 0), (16, 1, 4), (8, 4, 1), (2, 2, 0)]
)
def test_threads_prepare_batches_for_an_accelerator_alone(
    cores: int, cards: int, threads: int
) -> None:
    found = Machine("cuda" if cards else "cpu", "some", cores, 24.0, True, cards)
    assert choose_loader_workers("auto", found) == threads
    assert choose_loader_workers(7, found) == 7
