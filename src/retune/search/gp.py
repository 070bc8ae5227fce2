"""Bayesian optimisation: a Gaussian process and its expected improvement (Jones et al. 1998)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import Field

from retune.search import design
from retune.search.acquisition import Acquisition
from retune.search.problem import Candidate, Problem
from retune.search.settings import Settings

# The place of the point that earlier studies choose before they are judged, after the default setting
_PROBE = 1


class GpSettings(Settings):
    """Settings of `gp`."""

    LH_SEARCH: int = Field(8, ge=0, le=1000, description="Latin-hypercube points after the default setting")


def propose(problem: Problem, count: int) -> list[Candidate]:
    """Return the start design first, then the points of the highest expected improvement, one after the other."""
    settings = problem.settings
    assert isinstance(settings, GpSettings)
    return searched(problem, design.start(problem, settings.LH_SEARCH), count)


def searched(
    problem: Problem,
    begin: Sequence[Candidate],
    count: int,
    turns: Sequence[bool] = (),
    others: Callable[[], Sequence[Candidate]] = lambda: (),
) -> list[Candidate]:
    """Return the unseen points of the start design, then those of the highest expected improvement.

    Where `turns` is true, the point is the best of `others`, if there is one.

    With earlier studies, the second point is theirs and the others come from the start design until there are enough
    results to judge by: points that only those studies choose can never show that they are wrong, and one is enough to
    profit if they are right. After that, the rest of the design is dropped if the earlier studies predict this study's
    results, and otherwise made first.
    """
    left = [point for point in begin if point.levels not in problem.seen]
    informed = any(point.outcome == "ok" for point in problem.earlier)
    if (len(left) >= count and not informed) or len(problem.ok) < 2:
        return left[:count]
    acquisition, rng = Acquisition(problem), problem.rng("acquisition")
    mixed = informed and acquisition.uses_earlier_studies is None
    if mixed or acquisition.uses_earlier_studies:
        chosen: list[Candidate] = []
    else:
        chosen = left[:count]
    given = others() if any(turns[len(chosen) :]) else ()
    taken = set(problem.seen) | {point.levels for point in chosen}
    for turn in range(len(chosen), count):
        if mixed and left and problem.issued + turn != _PROBE:
            taken.add(left[0].levels)
            chosen.append(left.pop(0))
            continue
        point = acquisition.ranked(given, taken) if turn < len(turns) and turns[turn] else None
        if point is None:
            levels = acquisition.best(taken, rng)
            if levels is None:
                break
            point = Candidate(levels, "search: expected improvement")
        taken.add(point.levels)
        chosen.append(point)
    return chosen
