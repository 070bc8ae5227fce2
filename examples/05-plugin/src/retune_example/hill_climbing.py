"""A search algorithm: random steps from the best point so far, smaller and smaller ones."""

from __future__ import annotations

from pydantic import Field

from retune.search import Algorithm, Candidate, Problem, Settings


class HillClimbingSettings(Settings):
    """What `search.settings` may hold; values are checked, and may be text as Katib sends them."""

    step: float = Field(0.3, gt=0, le=1, description="size of the first steps, as a share of each range")
    shrink: float = Field(0.9, gt=0, lt=1, description="factor on the size after each trial")


def propose(problem: Problem, count: int) -> list[Candidate]:
    """Return the default setting first, then points around the best one.

    A pure function: all chance comes from the problem, which knows the seed and how many points were asked for. What
    is proposed twice, or was tried before, retune leaves out and fills up with random points.
    """
    settings = problem.settings
    assert isinstance(settings, HillClimbingSettings)
    if problem.best is None:
        default = problem.space.default()
        return [Candidate(problem.space.encode(default), "default")] if default else []
    rng = problem.rng("hill-climbing")
    size = max(settings.step * settings.shrink ** len(problem.points), 0.02)
    best = problem.space.to_unit(problem.best.levels)
    found = []
    for _ in range(20 * count):
        moved = [min(1.0, max(0.0, unit + float(rng.normal(0, size)))) for unit in best]
        found.append(Candidate(problem.space.from_unit(moved), "step"))
    return found


ALGORITHM = Algorithm(HillClimbingSettings, propose, "random steps from the best point, smaller and smaller")
