"""What a running trial reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Progress:
    """How far the training is. `loss` is that of the last step, `tokens_per_second` counts real tokens since the start."""

    step: int
    steps: int
    epoch: float
    loss: float
    tokens_per_second: float
    kind: Literal["progress"] = "progress"


@dataclass(frozen=True)
class Measured:
    """A metric was measured after optimiser step `step`."""

    name: str
    value: float
    step: int
    epoch: float
    kind: Literal["metric"] = "metric"


@dataclass(frozen=True)
class Note:
    """Something a person should know, in one sentence; nothing is wrong with the result."""

    text: str
    kind: Literal["note"] = "note"


Event = Progress | Measured | Note
