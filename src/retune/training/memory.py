"""Peak memory of a trial: the GPU's own count, else the resident set of this process."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import torch

_GIB = 1 << 30


def reset_peak(device: torch.device) -> None:
    """Start measuring anew. The kernel's mark is reset on Linux only; elsewhere it spans the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> dict[str, float]:
    """Return the peak since `reset_peak` in GiB: ``peak_memory_gib``, and ``peak_gpu_gib`` on a GPU."""
    found = {"peak_memory_gib": _resident() / _GIB}
    if device.type == "cuda":
        found["peak_gpu_gib"] = torch.cuda.max_memory_allocated(device) / _GIB
    return found


def _resident() -> int:
    """Return the highest resident set in bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
