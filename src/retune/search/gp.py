"""Bayesian optimisation: a Gaussian process and its expected improvement (Jones et al. 1998)."""

from __future__ import annotations

from pydantic import Field

from retune.search import design
from retune.search.acquisition import Promise
from retune.search.problem import Candidate, Problem
from retune.search.settings import Settings


class GpSettings(Settings):
    """Settings of `gp`."""

    start_points: int = Field(
        8, ge=0, le=1000, description="Latin-hypercube points after the default setting"
    )


def propose(problem: Problem, count: int) -> list[Candidate]:
    """Return the start design first, then the points of the highest expected improvement, one after the other."""
    settings = problem.settings
    assert isinstance(settings, GpSettings)
    begin = design.start(problem, settings.start_points)
    found = [point for point in begin if point.levels not in problem.seen][:count]
    if len(found) == count or len(problem.ok) < 2:
        return found
    promise, rng = Promise(problem), problem.rng("acquisition")
    taken = set(problem.seen) | {point.levels for point in found}
    while len(found) < count:
        levels = promise.best(taken, rng)
        if levels is None:
            break
        taken.add(levels)
        found.append(Candidate(levels, "expected improvement"))
    return found
