"""Memory: a trial's peak, and the available amount."""

from __future__ import annotations

import contextlib
import gc
import resource
import sys
from pathlib import Path

import torch

from retune import free_memory

_GIB = 1 << 30
_highest = 0  # bytes on the GPU, before the count was reset to measure a pass


def free(device: torch.device) -> int | None:
    """Return the bytes that a process may still take, None where nothing says.

    On a GPU: what the driver has free and what torch holds in reserve. Else see `retune.free_memory.available`.
    """
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    return free_memory.available()


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
    fields = free_memory.fields(Path("/proc/self/status"))
    if "VmHWM" in fields:
        return fields["VmHWM"]
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
