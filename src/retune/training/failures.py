"""What an error says of a trial: whether its setting is at fault, and how a record tells it."""

from __future__ import annotations

import errno

from retune.errors import RetuneError, TrialFailed, is_out_of_memory


def is_fault_of_setting(error: Exception) -> bool:
    """Return whether another setting may do without this error; a full disk or a storage that is away is not of that kind."""
    if isinstance(error, OSError) and error.errno != errno.ENOMEM:
        return False
    return isinstance(error, TrialFailed) or not isinstance(error, RetuneError)


def describe(error: Exception) -> tuple[str, str]:
    """Return the stable word and the one-line reason of a failure."""
    if isinstance(error, TrialFailed):
        return error.kind, error.reason
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        return "out_of_memory", f"out of memory: {text}{_gpu_numbers()}"
    return "error", f"{type(error).__name__}: {text}"


def _gpu_numbers() -> str:
    import torch

    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    peak = torch.cuda.max_memory_allocated()
    return f" (GPU: {total / 2**30:.1f} GiB in all, {free / 2**30:.1f} GiB free, {peak / 2**30:.1f} GiB used at most)"
