"""The task that an engine gives a worker: one trial to run."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from retune import records
from retune.space import Assignment


class TrialTask(BaseModel):
    """A trial to run. `folder` is the URI below which the trial writes everything."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trial: str
    number: int = Field(ge=0)
    role: records.Role
    assignment: Assignment = Field(default_factory=dict)
    seed: int = 0
    folder: str
    rungs: tuple[float, ...] = ()
    """Shares of the whole training after which the validation loss is measured for the search."""
    until: float = 1.0
    """The share to train to; the trial stops there and keeps its checkpoint, so that it can be continued later."""
