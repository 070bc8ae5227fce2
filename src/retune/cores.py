"""How many CPU cores this process may use, which in a container are often fewer than the machine has."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "RETUNE_CORES"
"""Environment variable of pods: the cores of their CPU request, which the system does not tell them."""


def available() -> int:
    """Return the number of cores: of the CPU affinity, of the container's quota of CPU time, or of `VARIABLE`, the least of them.

    torch and ``os.cpu_count`` see neither a quota, such as ``docker run --cpus 2`` or a pod's CPU limit sets, nor a request. More
    threads than cores wait for each other in every matrix product.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bounds = [cores, *map(math.ceil, quotas(Path("/sys/fs/cgroup")))]
    requested = os.environ.get(VARIABLE, "")
    if requested.isdecimal():
        bounds.append(int(requested))
    return max(1, min(bounds))


def quotas(root: Path) -> Iterator[float]:
    """Yield the container's quota of CPU time in cores, by cgroup v2 or v1; nothing where there is none."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (root / "cpu.max").read_text().split()
        yield int(quota) / int(period)  # "max" is no number
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        microseconds = int((root / "cpu/cpu.cfs_quota_us").read_text())
        if microseconds > 0:  # -1: no quota
            yield microseconds / int((root / "cpu/cpu.cfs_period_us").read_text())
