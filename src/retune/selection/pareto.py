"""The Pareto set of a study with several objectives: the trials that no other one beats in all of them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from retune.records import TrialRecord
from retune.selection.ranking import candidates, pareto
from retune.space import Assignment
from retune.study import Search


class ParetoTrial(BaseModel):
    """One trial of the Pareto set. `values` holds each objective by its metric, in the order of the study file."""

    trial: str
    assignment: Assignment
    values: dict[str, float]


def pareto_set(trials: Sequence[TrialRecord], search: Search) -> list[ParetoTrial]:
    """Return the non-dominated trials, best by the first objective first; nothing for a single objective.

    Only completed, trained settings that have all objectives and satisfy the constraints are compared. Equal ones all
    stay.
    """
    if not search.further_objectives:
        return []
    rows = []
    for record in candidates(trials, search.objective, search.constraints):
        values = {o.metric: record.objective(o.metric) for o in search.objectives}
        measured = {metric: value for metric, value in values.items() if value is not None}
        if len(measured) == len(values):
            rows.append(ParetoTrial(trial=record.trial, assignment=record.assignment, values=measured))
    signs = [1 if o.goal == "maximize" else -1 for o in search.objectives]
    points = [[sign * value for sign, value in zip(signs, row.values.values(), strict=True)] for row in rows]
    return [row for row, kept in zip(rows, pareto(points), strict=True) if kept]
