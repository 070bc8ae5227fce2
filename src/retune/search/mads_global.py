"""MADS with a global search step: a model of all results says where on the mesh to look, the poll confirms.

MADS allows any search on the mesh before each poll (Audet and Dennis 2006). NOMAD's own searches look near
the incumbent, so from one start it may stay in a local basin. Here the search step maximises the expected
improvement of a Gaussian process over the whole lattice, failures and constraints modelled
(`retune.search.acquisition`); every few points are left to NOMAD's poll around the incumbent, which needs no
model to be right.
"""

from __future__ import annotations

from pydantic import Field

from retune.search import design, nomad
from retune.search.acquisition import Promise
from retune.search.nomad import NomadSettings
from retune.search.problem import Candidate, Levels, Problem


class MadsGlobalSettings(NomadSettings):
    """Settings of `mads-global`: those of `nomad`, and how the points are shared."""

    poll_share: float = Field(0.25, ge=0, le=1, description="share of the points that is left to NOMAD")


def propose(problem: Problem, count: int) -> list[Candidate]:
    """Return the start design first, then points of the search step, and some of NOMAD's among them."""
    settings = problem.settings
    assert isinstance(settings, MadsGlobalSettings)
    begin = design.start(problem, settings.LH_SEARCH)
    found = [point for point in begin if point.levels not in problem.seen][:count]
    if len(found) == count or len(problem.ok) < 2:
        return found
    turns = [_is_poll(problem.issued + k, settings.poll_share) for k in range(len(found), count)]
    polled = nomad.around_incumbent(problem, begin, sum(turns)) if any(turns) else []
    promise, rng = Promise(problem), problem.rng("acquisition")
    taken: set[Levels] = set(problem.seen) | {point.levels for point in found}
    for is_poll in turns:
        point = promise.ranked(polled, taken) if is_poll else None
        if point is None:
            levels = promise.best(taken, rng)
            point = Candidate(levels, "search: expected improvement") if levels is not None else None
        if point is None:
            break
        taken.add(point.levels)
        found.append(point)
    return found


def _is_poll(number: int, share: float) -> bool:
    """Return whether point `number` is left to NOMAD: evenly spread, `share` of all."""
    return int((number + 1) * share) > int(number * share)
