"""The learning rate over a training: warm-up, then linear or cosine fall to zero, or constant."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["linear", "cosine", "constant"]


def warmup_steps(steps: int, warmup_share: float) -> int:
    """Return in how many of `steps` the learning rate rises (transformers' rule: rounded up)."""
    return math.ceil(steps * warmup_share)


def factor(schedule: Schedule, step: int, steps: int, warmup: int) -> float:
    """Return the factor on the learning rate in optimiser step `step`, counted from 0.

    Equals transformers' ``get_scheduler`` (optimization.py): a rise from 0 over the warm-up, then down to 0 at `steps`.
    """
    if step < warmup:
        return step / max(1, warmup)
    if schedule == "constant":
        return 1.0
    left = max(1, steps - warmup)
    if schedule == "linear":
        return max(0.0, (steps - step) / left)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / left)))
