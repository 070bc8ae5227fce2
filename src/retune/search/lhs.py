"""Latin-hypercube sampling (McKay et al. 1979), by SciPy: each parameter is covered evenly."""

from __future__ import annotations

from pydantic import Field

from retune.search import design
from retune.search.problem import Candidate, Problem
from retune.search.settings import Settings

_BLOCKS = 50


class LhsSettings(Settings):
    """Settings of `lhs`."""

    size: int = Field(
        50, ge=1, le=10_000, description="points of one hypercube; another one follows when it is used up"
    )


def propose(problem: Problem, count: int) -> list[Candidate]:
    """Return the default setting, then the next unseen points of a hypercube that the seed fixes."""
    settings = problem.settings
    assert isinstance(settings, LhsSettings)
    proposals = [point for point in design.start(problem, 0) if point.levels not in problem.seen]
    first = max(len(problem.points) - 1, 0) // settings.size
    for block in range(first, first + _BLOCKS):
        for levels in design.latin_hypercube(problem, settings.size, block):
            if len(proposals) >= count:
                return proposals
            if levels not in problem.seen and all(levels != point.levels for point in proposals):
                proposals.append(Candidate(levels, "Latin hypercube"))
    return proposals
