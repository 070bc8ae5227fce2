"""Memory: a trial's peak, and the available amount."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path

import torch

from retune import free_memory

_GIB = 1 << 30
_highest = 0  # bytes: the peak on the GPU up to the last reset of torch's own counter, which `allocated` resets for each pass


def free(device: torch.device) -> int | None:
    """Return the bytes that this process may still allocate; None if that is unknown.

    On a GPU: what the driver has free, plus what torch's allocator has cached. Else see `retune.free_memory.available`.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return free_memory.available()


def release_cached(device: torch.device) -> None:
    """Free what a failed pass left behind.

    Call it outside the block that caught the error: inside, the error's traceback keeps the tensors of the pass alive.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def allocated(device: torch.device) -> int:
    """Return the bytes in use on the GPU, and reset torch's peak counter to measure what is allocated on top of them."""
    global _highest
    _highest = max(_highest, torch.cuda.max_memory_allocated(device))
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def reset_peak(device: torch.device) -> None:
    """Start to measure a new peak. Resident memory has a peak that can be reset on Linux only; elsewhere it spans the process."""
    global _highest
    _highest = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # 5 resets VmHWM, see proc(5)


def peak(device: torch.device) -> dict[str, float]:
    """Return the peak since `reset_peak` in GiB: ``peak_memory_gib``, and ``peak_gpu_gib`` on a GPU."""
    peaks = {"peak_memory_gib": free_memory.peak_resident() / _GIB}
    if device.type == "cuda":
        peaks["peak_gpu_gib"] = max(_highest, torch.cuda.max_memory_allocated(device)) / _GIB
    return peaks
