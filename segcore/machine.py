"""What this machine is: cores, memory, accelerators, and whether it computes fast in bf16."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CPU_INFO = Path("/proc/cpuinfo")
MEMORY_INFO = Path("/proc/meminfo")
MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
ACCELERATORS = (Path("/dev/nvidia0"), Path("/dev/kfd"))
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """What training and prediction have at hand.

    Args:
        device: "cuda" or "cpu".
        name: of the accelerator or the processor.
        cores: processors that this process may use.
        memory_gib: of one accelerator, else of the machine or the container.
        fast_bf16: bf16 is computed by units of its own; elsewhere it is slower than fp32.
        accelerators: how many.
    """

    device: str
    name: str
    cores: int
    memory_gib: float
    fast_bf16: bool
    accelerators: int

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def describe_machine() -> Machine:
    """Look at this machine; imports torch only where there is an accelerator."""
    cores = len(os.sched_getaffinity(0))
    if any(path.exists() for path in ACCELERATORS):
        import torch

        if torch.cuda.is_available():
            card = torch.cuda.get_device_properties(0)
            return Machine(
                device="cuda",
                name=str(card.name),
                cores=cores,
                memory_gib=round(card.total_memory / GIB, 1),
                fast_bf16=card.major >= 8,
                accelerators=torch.cuda.device_count(),
            )
    facts = _cpu_facts()
    total = min([_meminfo("MemTotal"), *_limits()])
    return Machine(
        device="cpu",
        name=facts.get("model name", "processor"),
        cores=cores,
        memory_gib=round(total / GIB, 1),
        fast_bf16=bool(BF16_FLAGS & set(facts.get("flags", "").split())),
        accelerators=0,
    )


def available_memory_gib() -> float:
    """Memory that may still be taken without swapping."""
    return min([_meminfo("MemAvailable"), *_limits()]) / GIB


def _cpu_facts() -> dict[str, str]:
    """Fields of the first processor."""
    if not CPU_INFO.is_file():
        return {}
    first = CPU_INFO.read_text().partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _meminfo(field: str) -> int:
    """Bytes of a field of /proc/meminfo; the physical memory where there is none."""
    if MEMORY_INFO.is_file():
        for line in MEMORY_INFO.read_text().splitlines():
            key, _, value = line.partition(":")
            if key == field:
                return int(value.split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _limits() -> list[int]:
    """Memory limits of the container, where one is set."""
    found = []
    for file in MEMORY_LIMITS:
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            found.append(int(text))
    return found
