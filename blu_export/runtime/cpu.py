"""What the processor is, and how many threads a network should use on it."""

from __future__ import annotations

import math
import os
import platform
from functools import cache
from pathlib import Path

from blu_export.errors import UsageError

VARIABLE = "BLU_CORES"
_CGROUP = Path("/sys/fs/cgroup")
_TOPOLOGY = Path("/sys/devices/system/cpu")
EXTENSIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "asimddp",
              "i8mm", "bf16")  # fmt: skip
"""Vector extensions that decide how fast inference is, as Linux names them on x86-64 and ARM."""


@cache
def processor() -> tuple[str, tuple[str, ...]]:
    """(name, the EXTENSIONS that it has); no extensions where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), ()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return fields.get("model name", platform.machine()), tuple(name for name in EXTENSIONS if name in flags)


def usable_cores(cgroup: Path = _CGROUP, topology: Path = _TOPOLOGY) -> int:
    """Physical cores that this process may use: its affinity, its container's quota, no hyper-threads.

    Runtimes count the machine's processors instead, and in a container of 2 of 64 their 64 threads
    mostly wait for each other. A second hyper-thread of a core adds nothing to matrix products.

    ``BLU_CORES`` says it for those who share a machine; UsageError where it is not a number from 1 up.
    """
    if (given := os.environ.get(VARIABLE)) is not None:
        if not given.isdecimal() or int(given) < 1:
            raise UsageError(f"{VARIABLE}={given} is not a number of cores.", f"Write {VARIABLE}=2, or unset it.")
        return int(given)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_siblings(topology, cpu) for cpu in allowed}
    quota = _quota(cgroup)
    return max(1, len(cores) if quota is None else min(len(cores), math.ceil(quota)))


def _siblings(topology: Path, cpu: int) -> str:
    """A text that hyper-threads of one core share; the processor's own number where that is unknown."""
    try:
        return (topology / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota(cgroup: Path) -> float | None:
    """Processors' worth of time that the container may use; None without a limit."""
    for quota_file, period_file in (
        ("cpu.max", None),  # cgroup v2: "200000 100000" or "max 100000"
        ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),  # v1: -1 means no limit
    ):
        try:
            words = (cgroup / quota_file).read_text().split()
            if period_file is not None:
                words += (cgroup / period_file).read_text().split()
            quota, period = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):
            continue
        if quota > 0 and period > 0:
            return quota / period
    return None
