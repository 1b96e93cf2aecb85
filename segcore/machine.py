"""The machine a process runs on: what "auto" options are resolved by.

Cheap to import and to ask: torch is imported only where the machine seems to have an accelerator.
"""

import ctypes
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

GIB = float(1 << 30)
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
BF16_CAPABILITY = 8  # CUDA's, from Ampere on
LOADER_THREADS = 4  # more are no faster: docs/gpu.md
ACCELERATOR_BATCH = 8
NO_LIMIT_GIB = 2.0**30  # a cgroup without a limit says so by a number near 2**63 bytes

_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_DEVICES = (Path("/dev/nvidia0"), Path("/dev/kfd"))

# mallopt(3) of glibc
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


@dataclass(frozen=True)
class Machine:
    """What a run can count on.

    Args:
        device: "cpu" or "cuda".
        name: of the processor, or of the accelerator.
        cores: this process may use.
        memory_gib: of the accelerator; else of the host, or its container's limit.
        fast_bf16: the device computes bfloat16 in hardware.
        accelerators: how many there are.
    """

    device: str
    name: str
    cores: int
    memory_gib: float
    fast_bf16: bool
    accelerators: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the order of the fields."""
        return asdict(self)


def describe_machine() -> Machine:
    """The machine as this process sees it."""
    name, flags = _processor()
    cuda = _cuda()
    if cuda is not None:
        card = cuda.get_device_properties(cuda.current_device())
        return Machine(
            device="cuda",
            name=str(card.name),
            cores=_cores(),
            memory_gib=round(card.total_memory / GIB, 1),
            fast_bf16=card.major >= BF16_CAPABILITY,
            accelerators=int(cuda.device_count()),
        )
    return Machine(
        device="cpu",
        name=name,
        cores=_cores(),
        memory_gib=round(min(_meminfo_gib("MemTotal"), _cgroup_limit_gib()), 1),
        fast_bf16=bool(BF16_FLAGS & flags),
        accelerators=0,
    )


def choose_precision(asked: str, machine: Machine) -> str:
    """`asked`, or for "auto" bf16 where the hardware computes it, else fp32."""
    if asked != "auto":
        return asked
    return "bf16" if machine.fast_bf16 else "fp32"


def choose_batch_size(asked: int | str, machine: Machine) -> int:
    """`asked`, or for "auto" 8 on an accelerator and 1 on a CPU, which gains nothing from more."""
    if asked != "auto":
        return int(asked)
    return ACCELERATOR_BATCH if machine.accelerators else 1


def choose_loader_workers(asked: int | str, machine: Machine) -> int:
    """`asked`, or for "auto" threads for an accelerator, which would wait for each batch.

    On a CPU the cores that would prepare batches ahead are those that train: none.
    """
    if asked != "auto":
        return int(asked)
    if not machine.accelerators:
        return 0
    return max(0, min(LOADER_THREADS, machine.cores // machine.accelerators - 1))


def available_memory_gib(device: str = "cpu") -> float:
    """Memory that is free now, on the host (within its container's limit) or on a CUDA device."""
    if device.startswith("cuda"):
        cuda = _cuda()
        if cuda is not None:
            return float(cuda.mem_get_info(device)[0]) / GIB
    within = _cgroup_limit_gib() - _cgroup_used_gib()
    return max(0.0, min(_meminfo_gib("MemAvailable"), within))


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for the next step to take without the kernel's help.

    glibc returns large blocks at once, and each step of training gets its activations as new pages
    that the kernel must fill with zeros: on a CPU a tenth of a U-Net's step. For processes that
    train; one that handles pictures of ever new sizes would grow.

    Returns:
        whether the C library took it; others than glibc do not.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


def _cuda() -> Any:
    """`torch.cuda` where a device answers, else None."""
    if not any(path.exists() for path in _DEVICES):
        return None
    import torch

    return torch.cuda if torch.cuda.is_available() else None


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> tuple[str, frozenset[str]]:
    """Name and flags of the first processor; of all, on the machines this is made for."""
    try:
        first = _CPUINFO.read_text().split("\n\n", 1)[0]
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    pairs = (line.partition(":") for line in first.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in pairs}
    name = facts.get("model name") or platform.processor() or platform.machine()
    return name, frozenset((facts.get("flags") or facts.get("Features") or "").split())


def _meminfo_gib(key: str) -> float:
    """A line of /proc/meminfo, whose unit is KiB; physical memory where there is none."""
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024 / GIB
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB


def _cgroup_limit_gib() -> float:
    limit = _first_number("memory.max", "memory/memory.limit_in_bytes")
    return NO_LIMIT_GIB if limit is None else limit / GIB


def _cgroup_used_gib() -> float:
    """Memory in use in this container, without file pages that the kernel gives back on demand."""
    used = _first_number("memory.current", "memory/memory.usage_in_bytes") or 0
    return max(0, used - _inactive_file()) / GIB


def _inactive_file() -> int:
    for name in ("memory.stat", "memory/memory.stat"):
        try:
            lines = (_CGROUP / name).read_text().splitlines()
        except OSError:
            continue
        values = dict(line.split()[:2] for line in lines if line.strip())
        return int(values.get("total_inactive_file", values.get("inactive_file", 0)))
    return 0


def _first_number(*names: str) -> int | None:
    """The number in the first of some cgroup files that is there; None for "max"."""
    for name in names:
        try:
            text = (_CGROUP / name).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None
