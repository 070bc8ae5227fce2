"""Several objectives: which point of the Pareto front to improve next, and what improving it means.

The rules are those of DMulti-MADS (Bigeon, Le Digabel and Salomon 2021): every non-dominated point has a frame
of its own; the next iteration belongs to the point with the widest gap in the objective space among those whose
frames are among the largest; a point that dominates its center enlarges the frame, a merely non-dominated one
keeps it, an iteration without either refines it. As for one objective, all of it is folded from the history.
NOMAD's own DMULTIMADS_OPTIMIZATION cannot propose from a cache (it ends the process), so the iteration is done
as in BiMADS (Audet, Savard and Zghal 2008): NOMAD improves one number, the volume that a point adds to the front
near the center (their product formulation). A batch is shared among several centers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from retune.search.frame import Frame, State, Steps, fold
from retune.search.problem import Levels, Point, Problem

_LARGEST = 1e12  # a product of such shares is finite
_BEYOND = 0.2  # how much worse, in ranges, an extreme point of the front may get in an objective


@dataclass
class _Member:
    """A non-dominated point with its frame."""

    point: Point
    at: State
    stalled: int = 0
    restarts: int = 0
    failures: int = 0


def focus(
    problem: Problem, steps: Steps, free: Collection[Levels], most: int = 1
) -> list[tuple[Problem, Frame]]:
    """Return up to `most` views, the most urgent first: the problem with one number to improve, and a frame.

    The frame lies around the best point by that number, a point of the front.
    """
    history = (*problem.warm, *problem.points)
    members = _fold(problem, history, steps, free)
    scale = _Scale([point.values for point in problem.ok])
    if not members:  # nothing feasible yet: the violation leads
        single = _valued(problem, lambda point: sum(scale(point.values)))
        return [(single, fold((*single.warm, *single.points), steps, free))]
    positions = [scale(member.point.values) for member in members]
    views = []
    for chosen in _by_gap(members, positions)[:most]:
        center = members[chosen]
        single = _valued(problem, _Score(scale, positions[chosen], _corner(chosen, positions)))
        best = next(p for p in (*single.warm, *single.points) if p.levels == center.point.levels)
        smallest = center.at == steps.floor
        views.append(
            (single, Frame(steps.sizes(center.at), best, center.restarts, smallest, center.failures))
        )
    return views


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Return whether `first` is nowhere worse (higher) and somewhere better than `second`."""
    pairs = list(zip(first, second, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


class _Scale:
    """Objective values in units of their range."""

    def __init__(self, rows: Sequence[Sequence[float]]) -> None:
        columns = list(zip(*rows, strict=True))
        self._low = [min(column) for column in columns]
        self._width = [max(column) - min(column) or 1.0 for column in columns]

    def __call__(self, values: Sequence[float]) -> list[float]:
        return [(v - low) / width for v, low, width in zip(values, self._low, self._width, strict=True)]


def _valued(problem: Problem, value: Callable[[Point], float]) -> Problem:
    """Return the problem with one value a point."""

    def single(points: Sequence[Point]) -> tuple[Point, ...]:
        return tuple(p._replace(value=value(p)) if p.outcome == "ok" else p for p in points)

    return replace(problem, warm=single(problem.warm), points=single(problem.points), objectives=1)


def _fold(
    problem: Problem, history: Sequence[Point], steps: Steps, free: Collection[Levels]
) -> list[_Member]:
    """Return the non-dominated feasible points of a history with the frames that it left them."""
    members: list[_Member] = []
    for point in history:
        if point.outcome == "running":
            continue
        center = _nearest(problem, members, point)
        good = point.outcome == "ok" and point.violation == 0
        if good and not any(
            dominates(m.point.values, point.values) or m.point.values == point.values for m in members
        ):
            members = [m for m in members if not dominates(point.values, m.point.values)]
            members.append(_Member(point, _inherited(steps, center, point, free)))
        elif center is not None and point.levels not in free:
            _failed(center, steps)
    return members


def _nearest(problem: Problem, members: Sequence[_Member], point: Point) -> _Member | None:
    """Return the member that a trial most likely came from: the nearest one."""
    position = problem.space.to_unit(point.levels)

    def distance(member: _Member) -> float:
        other = problem.space.to_unit(member.point.levels)
        return max(abs(a - b) for a, b in zip(position, other, strict=True))

    return min(members, key=distance, default=None)


def _inherited(steps: Steps, center: _Member | None, point: Point, free: Collection[Levels]) -> State:
    if center is None or point.levels in free:
        return steps.first
    if dominates(point.values, center.point.values):
        return steps.enlarged(center.at, center.point.levels, point.levels)
    return center.at


def _failed(center: _Member, steps: Steps) -> None:
    center.stalled += 1
    if center.stalled < steps.patience:
        return
    center.stalled, center.failures = 0, center.failures + 1
    refined = steps.refined(center.at)
    if refined is None:
        center.at, center.restarts = steps.first, center.restarts + 1
    else:
        center.at = refined


def _by_gap(members: Sequence[_Member], positions: Sequence[Sequence[float]]) -> list[int]:
    """Return the members to improve next, ordered by the gap next to them, widest first."""
    fewest = min(m.restarts for m in members)
    largest = max(sum(m.at) for m in members if m.restarts == fewest)
    ready = [
        k
        for k, m in enumerate(members)
        if m.restarts == fewest and sum(m.at) >= largest - len(m.at)  # one refinement behind at most
    ]
    return sorted(ready, key=lambda k: (-_gap(k, positions), k))


def _gap(chosen: int, positions: Sequence[Sequence[float]]) -> float:
    """Return the widest distance between a point's neighbours along an objective; an extreme point's counts twice."""
    if len(positions) == 1:
        return 0.0
    widest = 0.0
    for k in range(len(positions[0])):
        column = sorted((position[k], number) for number, position in enumerate(positions))
        at = [number for _, number in column].index(chosen)
        low, high = column[max(at - 1, 0)][0], column[min(at + 1, len(column) - 1)][0]
        widest = max(widest, (high - low) * (2 if at in (0, len(column) - 1) else 1))
    return widest


def _corner(chosen: int, positions: Sequence[Sequence[float]]) -> list[float]:
    """Return the next worse value of the front in each objective."""
    center = positions[chosen]
    return [
        min((position[k] for position in positions if position[k] > center[k]), default=center[k] + _BEYOND)
        for k in range(len(center))
    ]


class _Score:
    """The number to minimise: less the volume between a point and the corner, or the distance to the box."""

    def __init__(self, scale: _Scale, center: Sequence[float], corner: Sequence[float]) -> None:
        self._scale, self._corner = scale, corner
        self._sides = [high - low for high, low in zip(corner, center, strict=True)]

    def __call__(self, point: Point) -> float:
        position = self._scale(point.values)
        shares = [
            max(min((c - v) / side, _LARGEST), -_LARGEST)
            for c, v, side in zip(self._corner, position, self._sides, strict=True)
        ]
        if all(share > 0 for share in shares):
            return -math.prod(shares)
        return math.hypot(*(min(share, 0.0) for share in shares))
