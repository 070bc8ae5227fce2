"""Multi-fidelity search, with trials cheaper than a full training: the keys `search.stopping` and `search.proxy`."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from retune.study.section import Section

REDUCTION, STARTUP, MEDIAN_SHARE = 3, 5, 0.25
_OPTIONS = {
    "asha": ("reduction", "min_share"),
    "hyperband": ("reduction", "min_share"),
    "median": ("min_share", "interval", "startup_trials"),
}


class Stopping(Section):
    """When a trial is stopped early: its validation loss is compared with those of other trials at the same rung.

    ``asha``: of the trials at a rung the best ``1/reduction`` continue (Li et al. 2020). ``hyperband``: the same in several
    brackets, each of which starts at a higher rung (Li et al. 2018). ``median``: a trial continues unless it is worse than
    the median (Golovin et al. 2017). Rungs are shares of a trial's whole training: with `training.epochs: 2`, 0.5 is one
    epoch and 0.05 a tenth of one.
    """

    kind: Literal["asha", "hyperband", "median"]
    reduction: int | None = Field(
        None, ge=2, le=100, description="asha, hyperband: one in so many goes on, to so many times the training; default 3"
    )  # fmt: skip
    min_share: float | None = Field(
        None, ge=0.001, lt=1, description="first rung; default 1/reduction², of median 0.25"
    )
    interval: float | None = Field(
        None, ge=0.001, lt=1, description="median: from one rung to the next; default: as `min_share`"
    )
    startup_trials: int | None = Field(
        None,
        ge=1,
        le=2**31 - 1,
        description="median: trials at a rung before any is stopped there; default 5",
    )

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        valid = _OPTIONS[self.kind]
        options = [
            name for name in Stopping.model_fields if name != "kind" and getattr(self, name) is not None
        ]
        unknown = [name for name in options if name not in valid]
        problems = (
            [f"`stopping: {self.kind}` has the options {list(valid)}, but got {unknown}"] if unknown else []
        )
        if not unknown and len(self.rungs) > 100:
            problems.append(
                f"at most 100 rungs are possible, but `min_share` and `interval` or `reduction` make {len(self.rungs)}"
            )
        return self._checked(problems)

    @property
    def eta(self) -> int:
        """The reduction factor: one in so many trials continues."""
        return self.reduction or REDUCTION

    @property
    def startup(self) -> int:
        """How many trials `median` needs at a rung before it stops one there."""
        return self.startup_trials or STARTUP

    @property
    def rungs(self) -> tuple[float, ...]:
        """The shares of a whole training, each below 1, after which trials are compared."""
        if self.kind == "median":
            first = self.min_share or MEDIAN_SHARE
            step = self.interval or first
            count = int((1 - first) / step) + 1
            shares = [first + k * step for k in range(count)]
        else:
            first, shares = self.min_share or self.eta**-2, []
            while first * self.eta ** len(shares) < 1:
                shares.append(first * self.eta ** len(shares))
        return tuple(round(share, 12) for share in shares if share < 1 - 1e-9)


class Proxy(Section):
    """The search's trials train on a part of the training data; the best settings then on all of it."""

    share: float = Field(
        gt=0, lt=1, description="of the training data, of each source alike, drawn by the study's seed"
    )
    full: int = Field(
        5,
        ge=1,
        le=2**31 - 1,
        description="best settings that are trained on all data, besides the default setting",
    )


def from_kind(value: Any) -> Any:
    """Convert ``stopping: asha`` to ``stopping: {kind: asha}``."""
    return {"kind": value} if isinstance(value, str) else value
