"""What several benchmarks need: the machine's processor, sources of records on the command line, and the limit of a GPU."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
"""Dense bfloat16, NVIDIA's data sheets."""


def processor() -> str:
    """Return the name of the processor, if the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def source(text: str) -> dict[str, Any]:
    """Return ``FORMAT:FILE:SHARE`` as a source of a study."""
    kind, _, rest = text.partition(":")
    file, _, share = rest.rpartition(":")
    return {"format": kind, "uri": str(Path(file).resolve()), "share": float(share)}


def share_of_limit(tokens_per_second: float, weights: int, peak_tflops: float | None = None) -> float | None:
    """Return what share of this GPU's peak a training reaches at 4 FLOP a weight and token; None for an unknown GPU.

    A frozen base costs 2 FLOP a weight and token forward and 2 for the gradients of activations.

    Args:
        tokens_per_second: real tokens. weights: of the base.
        peak_tflops: of the GPU, if it is not one of `PEAK_TFLOPS`.
    """
    import torch

    name = torch.cuda.get_device_name()
    peak = peak_tflops or next((peak for key, peak in PEAK_TFLOPS.items() if key in name), None)
    return tokens_per_second * 4 * weights / (peak * 1e12) if peak else None
