"""Ranking of trials by one objective, and Pareto dominance for several."""

from __future__ import annotations

import math
from collections.abc import Sequence

from retune.records import TrialRecord
from retune.study import Constraint, Objective


def gain(value: float, reference: float, objective: Objective) -> float:
    """Return how much better `value` is than `reference`, in units of the objective."""
    return reference - value if objective.goal == "minimize" else value - reference


def rank(trials: Sequence[TrialRecord], objective: Objective) -> list[TrialRecord]:
    """Return the completed trials, best first; equal ones by number. Failed trials and NaN are left out."""
    sign = 1 if objective.goal == "minimize" else -1
    valued = [
        (sign * value, t.number, t) for t in trials if (value := t.objective(objective.metric)) is not None
    ]
    return [trial for _, _, trial in sorted(valued, key=lambda entry: entry[:2])]


def candidates(
    trials: Sequence[TrialRecord], objective: Objective, constraints: Sequence[Constraint] = ()
) -> list[TrialRecord]:
    """Return the trials that may be chosen, best first: completed, trained settings that satisfy the constraints."""
    trained = [t for t in rank(trials, objective) if t.role in ("default", "search")]
    return [trial for trial in trained if is_feasible(trial, constraints)]


def is_feasible(trial: TrialRecord, constraints: Sequence[Constraint]) -> bool:
    """Return whether a trial satisfies all constraints; one on a metric that it did not measure is violated."""
    for constraint in constraints:
        value = measured(trial, constraint.metric)
        if value is None:
            return False
        low = -math.inf if constraint.min is None else constraint.min
        high = math.inf if constraint.max is None else constraint.max
        if not low <= value <= high:
            return False
    return True


def measured(trial: TrialRecord, metric: str) -> float | None:
    """Return the value for a constraint: a metric, or a number of the record such as `seconds`; None if not finite."""
    value = trial.values.get(metric)
    if value is None and metric in TrialRecord.model_fields:
        value = getattr(trial, metric)
    return None if value is None or not math.isfinite(value) else float(value)


def pareto(points: Sequence[Sequence[float]]) -> list[bool]:
    """Return for each point (higher is better in every coordinate) whether no other point dominates it.

    A point dominates another if it is nowhere worse and somewhere better; equal points do not.
    """
    return [not any(_dominates(other, point) for other in points) for point in points]


def _dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
