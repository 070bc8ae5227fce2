"""MADS with a global search step: a model of all results says where on the mesh to look, a poll confirms.

MADS allows any search on the mesh before each poll (Audet and Dennis 2006). NOMAD's own searches look near the
incumbent, so from one start it may stay in a local basin. Here the search step maximises the expected improvement of a
Gaussian process over the whole lattice, failures and constraints modelled (`retune.search.acquisition`). Every few
points are left to the poll around the incumbent, which needs no model to be right: OrthoMADS' 2n directions (Abramson
et al. 2009), at the frame that the history has led to (`retune.search.frame`). Of its points the model only says which
to try first. The poll is computed here and not by NOMAD, so no other process is started.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydantic import Field

from retune.search import design, gp
from retune.search.frame import Frame, Steps, fold
from retune.search.lattice import Floats
from retune.search.problem import Candidate, Levels, Problem, hashed

_BASES = 4  # sets of directions that are looked through for unseen points before the poll is given up


class MadsGlobalSettings(gp.GpSettings):
    """Settings of `mads-global`: those of `gp`, and of the poll as NOMAD names them."""

    poll_share: float = Field(0.1, ge=0, le=1, description="share of the points that is left to the poll")
    INITIAL_FRAME_SIZE: float = Field(
        0.1, gt=0, le=1, description="first frame size, as a share of each range"
    )
    MIN_FRAME_SIZE: float = Field(
        0.0, ge=0, le=1, description="a mesh has converged at this share of each range; 0: at the grid"
    )
    ANISOTROPIC_MESH: bool = Field(True, description="grow the frame only along the coordinates that moved")


def propose(problem: Problem, count: int) -> list[Candidate]:
    """Return the start design first, then points of the search step, and some of the poll among them."""
    settings = problem.settings
    assert isinstance(settings, MadsGlobalSettings)
    begin = design.start(problem, settings.LH_SEARCH)
    free = {candidate.levels for candidate in begin} | {point.levels for point in problem.warm}
    turns = [_is_poll(problem.issued + k, settings.poll_share) for k in range(count)]
    return gp.searched(problem, begin, count, turns, lambda: list(_poll(problem, settings, free)))


def _is_poll(number: int, share: float) -> bool:
    """Return whether point `number` is left to the poll: evenly spread, `share` of all."""
    return int((number + 1) * share) > int(number * share)


def _poll(problem: Problem, settings: MadsGlobalSettings, free: set[Levels]) -> Iterator[Candidate]:
    """Yield the unseen points of the first set of directions that has some, and the other categories.

    The directions are drawn from the incumbent and its frame, so that one poll completes over as many calls as it takes.
    """
    ranges = tuple(p.levels - 1 if p.ordered else 0 for p in problem.space.parameters)
    steps = Steps(ranges, settings.INITIAL_FRAME_SIZE, settings.MIN_FRAME_SIZE, settings.ANISOTROPIC_MESH)
    frame = fold((*problem.warm, *problem.points), steps, free)
    assert frame.incumbent is not None
    center = frame.incumbent.levels
    for axis, parameter in enumerate(problem.space.parameters):
        for level in range(0 if parameter.ordered else parameter.levels):
            levels = (*center[:axis], level, *center[axis + 1 :])
            if levels not in problem.seen:
                yield Candidate(levels, "poll of categories")
    active = problem.space.active(center)
    reaches = tuple(reach if on else 0 for reach, on in zip(ranges, active, strict=True))
    for basis in range(_BASES):
        rng = np.random.default_rng(hashed(problem.seed, center, frame.sizes, frame.restarts, basis))
        around = [problem.snap(levels) for levels in _directions(frame, reaches, center, rng)]
        unseen = [levels for levels in dict.fromkeys(around) if levels not in problem.seen]
        yield from (Candidate(levels, _origin(frame)) for levels in unseen)
        if unseen:
            return


def _directions(
    frame: Frame, ranges: tuple[int, ...], center: Levels, rng: np.random.Generator
) -> list[list[int]]:
    """Return the points at the two ends of each column of a random Householder matrix, scaled to the frame."""
    axes = [axis for axis, reach in enumerate(ranges) if reach > 0]
    if not axes:
        return []
    normal = rng.standard_normal(len(axes))
    normal /= np.linalg.norm(normal)
    columns: Floats = np.eye(len(axes)) - 2 * np.outer(normal, normal)
    columns /= np.abs(columns).max(axis=0)
    points = []
    for column in (*columns.T, *-columns.T):
        levels = list(center)
        for axis, share in zip(axes, column, strict=True):
            levels[axis] = min(max(levels[axis] + round(share * frame.sizes[axis]), 0), ranges[axis])
        points.append(levels)
    return points


def _origin(frame: Frame) -> str:
    return f"poll, restart {frame.restarts}" if frame.restarts else "poll"
