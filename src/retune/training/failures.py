"""What an error means for a trial: whether its setting may be at fault, and how the record describes it."""

from __future__ import annotations

import errno

from retune.errors import RetuneError, TrialFailed, is_out_of_memory


def is_fault_of_setting(error: Exception) -> bool:
    """Return whether an error may be due to the trial's setting, so that other trials may succeed.

    It then becomes a failed record. Errors of the environment (a full disk, an unreachable store) and of the study stop the
    search instead.
    """
    if isinstance(error, OSError) and error.errno != errno.ENOMEM:
        return False
    return isinstance(error, TrialFailed) or not isinstance(error, RetuneError)


def describe(error: Exception) -> tuple[str, str]:
    """Return the kind of a failure, one stable word, and its reason in one line."""
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
