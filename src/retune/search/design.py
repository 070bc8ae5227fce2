"""Points that need no results: the start of a study, and unseen points where an algorithm has none."""

from __future__ import annotations

import itertools
from collections.abc import Collection

import numpy as np

from retune.search.problem import Candidate, Levels, Problem, hashed

_ENUMERABLE = 50_000


def start(problem: Problem, size: int) -> list[Candidate]:
    """Return the start design: the default setting, if there is one, then a Latin hypercube of `size` points.

    It depends on the space and the study's seed alone, so that every call sees the same one, with the seen
    points in it.
    """
    points: list[Candidate] = []
    default = problem.space.default()
    if default is not None:
        points.append(Candidate(problem.space.encode(default), "start: default"))
    points += [Candidate(levels, "start: Latin hypercube") for levels in latin_hypercube(problem, size)]
    first: dict[Levels, Candidate] = {}
    for point in points:
        first.setdefault(point.levels, point)
    return list(first.values())


def latin_hypercube(problem: Problem, size: int, block: int = 0) -> list[Levels]:
    """Return a Latin hypercube of `size` points, snapped to the lattice (McKay et al. 1979).

    Each `block` is a hypercube of its own, with its own seed.
    """
    if size == 0:
        return []
    # The points of scipy.stats.qmc.LatinHypercube, whose import takes a second at the start of each service and run
    rng = np.random.default_rng(hashed(problem.seed, "latin hypercube", block)).spawn(1)[0]
    within = rng.uniform(size=(size, len(problem.space.parameters)))
    cells = np.array([rng.permutation(size) for _ in problem.space.parameters]).T
    return [problem.snap(problem.space.from_unit(row)) for row in ((cells + 1 - within) / size).tolist()]


def unseen(problem: Problem, taken: Collection[Levels], count: int, rng: np.random.Generator) -> list[Levels]:
    """Return `count` distinct random points that are neither seen nor taken; fewer only if no more exist."""
    avoid = set(problem.seen) | set(taken)
    points: list[Levels] = []
    if problem.space.size > _ENUMERABLE or len(avoid) < problem.space.size // 2:
        for _ in range(50 + 20 * count):
            if len(points) == count:
                return points
            levels = problem.snap(problem.space.from_unit(rng.random(len(problem.space.parameters)).tolist()))
            if levels not in avoid:
                avoid.add(levels)
                points.append(levels)
    if len(points) < count:
        points += _remaining(problem, avoid, count - len(points), rng)
    return points


def repeats(problem: Problem, taken: Collection[Levels], count: int) -> list[Levels]:
    """Return `count` points of an exhausted space again, the best first: repeats tell of the noise."""
    ranked = [point.levels for point in sorted(problem.ok, key=lambda point: point.merit)]
    ranked += sorted(set(problem.seen) - set(ranked)) + sorted(set(taken) - set(problem.seen))
    fresh = [levels for levels in ranked if levels not in taken] or ranked
    return list(itertools.islice(itertools.cycle(fresh), count))


def _remaining(problem: Problem, avoid: set[Levels], count: int, rng: np.random.Generator) -> list[Levels]:
    """Look through the lattice in order, from a random place, when chance no longer finds free points."""
    ladders = [range(parameter.levels) for parameter in problem.space.parameters]
    if problem.space.size <= _ENUMERABLE:
        free = sorted({problem.snap(levels) for levels in itertools.product(*ladders)} - avoid)
        rng.shuffle(free)
        return [tuple(levels) for levels in free[:count]]
    points = []
    for levels in itertools.islice(itertools.product(*ladders), len(avoid) + count + _ENUMERABLE):
        snapped = problem.snap(levels)
        if snapped not in avoid:
            avoid.add(snapped)
            points.append(snapped)
            if len(points) == count:
                break
    return points
