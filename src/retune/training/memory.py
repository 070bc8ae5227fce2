"""Memory: a trial's peak, and the available amount."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

_GIB = 1 << 30
_highest = 0  # bytes on the GPU, before the count was reset to measure a pass


def free(device: torch.device) -> int | None:
    """Return the bytes that a process may still take, None where nothing says.

    On a GPU: what the driver has free and what torch holds in reserve. Else the least of what the machine has, of what the
    container may use (cgroup v2 or v1) and of this process's limits (RLIMIT_AS, RLIMIT_DATA).
    """
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    found = [*_machine(), *_container(Path("/sys/fs/cgroup")), *_process()]
    return max(0, min(found)) if found else None


def _machine() -> Iterator[int]:
    fields = _fields(Path("/proc/meminfo"))
    if "MemAvailable" in fields:
        yield fields["MemAvailable"]
    else:
        with contextlib.suppress(ValueError, OSError):
            yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _container(root: Path) -> Iterator[int]:
    """Yield what is left of the container's limit; the files it has read are given back when memory is short."""
    for limit, used, given_back in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):
            allowed = int((root / limit).read_text())
            statistics = (root / limit).with_name("memory.stat").read_text().split()
            files = dict(zip(statistics[::2], map(int, statistics[1::2]), strict=True)).get(given_back, 0)
            yield allowed - int((root / used).read_text()) + files


def _process() -> Iterator[int]:
    fields = _fields(Path("/proc/self/status"))
    for limit, field in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        allowed = resource.getrlimit(limit)[0]
        if allowed != resource.RLIM_INFINITY and field in fields:
            yield allowed - fields[field]


def _fields(path: Path) -> dict[str, int]:
    """Return the fields of a file of the kernel's that are given in kB, in bytes."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[2:] == ["kB"]}


def give_back(device: torch.device) -> None:
    """Free what a failed pass left behind; call it outside the block that caught the error, which holds the pass."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def allocated(device: torch.device) -> int:
    """Return the bytes in use on the GPU, and start to measure what is used on top of them."""
    global _highest
    _highest = max(_highest, torch.cuda.max_memory_allocated(device))
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def reset_peak(device: torch.device) -> None:
    """Start measuring anew. The kernel's mark is reset on Linux only; elsewhere it spans the process."""
    global _highest
    _highest = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> dict[str, float]:
    """Return the peak since `reset_peak` in GiB: ``peak_memory_gib``, and ``peak_gpu_gib`` on a GPU."""
    found = {"peak_memory_gib": _resident() / _GIB}
    if device.type == "cuda":
        found["peak_gpu_gib"] = max(_highest, torch.cuda.max_memory_allocated(device)) / _GIB
    return found


def _resident() -> int:
    """Return the highest resident set in bytes."""
    fields = _fields(Path("/proc/self/status"))
    if "VmHWM" in fields:
        return fields["VmHWM"]
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
