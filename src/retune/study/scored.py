"""Benchmarks that are scored in every trial, so that they can be objectives or constraints of a search."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from retune.study.names import TASKS, TaskName
from retune.study.section import Section

MEAN_SCORE = "mean_score"
"""The metric that is the mean of a trial's scores."""


class Scoring(Section):
    """Benchmarks scored in every trial, as metrics of their names (0 to 1) and `mean_score`, their mean."""

    tasks: list[TaskName] = Field(
        default_factory=list,
        description="those that an objective or a constraint names are scored without being listed",
    )
    limit: int | None = Field(
        None, gt=0, description="questions per task at most; `benchmark.limit` if not given"
    )


def tasks(scoring: Scoring, metrics: Sequence[str]) -> list[str]:
    """Return the tasks that a trial is scored on: those listed, and those among the metrics."""
    return list(dict.fromkeys([*scoring.tasks, *(metric for metric in metrics if metric in TASKS)]))
