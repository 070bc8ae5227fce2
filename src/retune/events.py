"""The events of a running study: every callback gets an `Event`, whether a trial, an engine or a benchmark calls it.

======================  =====================================================================================
from                    events
======================  =====================================================================================
a trial                 `Progress`, `Measured`, `Note`
an engine               `Issued`, `Finished`, and what its trials report; `Polled` when there is nothing new
benchmarks, answers     `Answering`, `Scored`
======================  =====================================================================================

`kind` names the class in JSON (`as_json`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import BaseModel

from retune.records import Role, TrialRecord
from retune.space import Assignment


@dataclass(frozen=True)
class Issued:
    """A trial was given its setting and is about to run."""

    trial: str
    number: int
    role: Role
    assignment: Assignment
    seed: int
    kind: Literal["issued"] = "issued"


@dataclass(frozen=True)
class Progress:
    """How far a trial's training is.

    Attributes:
        step, steps: optimiser steps done, and of the whole training.
        loss: of the last step, in nats per counted token.
        tokens_per_second: real (non-padding) tokens since the start.

    """

    step: int
    steps: int
    epoch: float
    loss: float
    tokens_per_second: float
    trial: str = ""
    kind: Literal["progress"] = "progress"


@dataclass(frozen=True)
class Measured:
    """A metric of a trial was measured after optimiser step `step`."""

    name: str
    value: float
    step: int
    epoch: float
    trial: str = ""
    kind: Literal["metric"] = "metric"


@dataclass(frozen=True)
class Note:
    """Something a person should know, in one sentence; nothing is wrong with the result."""

    text: str
    trial: str = ""
    kind: Literal["note"] = "note"


@dataclass(frozen=True)
class Finished:
    """A trial ended, and this is its record."""

    trial: str
    record: TrialRecord
    kind: Literal["finished"] = "finished"


@dataclass(frozen=True)
class Polled:
    """An engine polled its trials and found nothing new; displays can update their clocks."""

    kind: Literal["polled"] = "polled"


@dataclass(frozen=True)
class Answering:
    """How many questions of a benchmark a model has answered; `task` is empty for those of a preference study."""

    model: str
    task: str
    done: int
    total: int
    seconds_left: float
    kind: Literal["answering"] = "answering"


@dataclass(frozen=True)
class Scored:
    """A model was scored on a benchmark; with `kept` by an earlier run, from the same inputs."""

    model: str
    task: str
    score: float
    stderr: float
    n: int
    kept: bool
    kind: Literal["scored"] = "scored"


Event = Issued | Progress | Measured | Note | Finished | Polled | Answering | Scored


def as_json(event: Event) -> dict[str, Any]:
    """Return an event as plain data."""
    content = asdict(event)
    return {name: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for name, v in content.items()}
