"""Simultaneous optimistic optimisation (Munos 2011), as Algorithm 3.3 of Davouse (2024).

The space is cut into K cells along one axis after the other; a cell's score is the value at its centre. A sweep goes
down the depths and cuts the best leaf of each, if it is as good as all leaves cut above it in this sweep. Each call grows
the tree anew from the known values. Centres without a value are the proposals; the sweeps continue with the other cells,
so a batch comes from several nodes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import Field

from retune.search import design
from retune.search.problem import Candidate, Levels, Point, Problem
from retune.search.settings import Settings

# Limit per call: a tree whose centres are all known would grow for ever
_CELLS, _CELLS_A_TRIAL = (
    5_000,
    20,
)


class SooSettings(Settings):
    """Settings of `soo`."""

    sections: int = Field(
        3, ge=2, le=9, description="K, the parts a cell is cut into; odd ones keep its centre"
    )


@dataclass
class Cell:
    """A box of the unit cube.

    `score` is to be minimised, None while unknown; `bound` is the score of the cell it was cut from.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    center: Levels
    score: float | None
    bound: float


@dataclass
class Depth:
    """The leaves at one depth, the best first: those with a score, and those that wait for one."""

    scored: list[tuple[float, int, Cell]] = field(default_factory=list)
    awaited: list[tuple[float, int, Cell]] = field(default_factory=list)

    def add(self, cell: Cell, number: int) -> None:
        """Take a leaf in; `number` orders equals."""
        heapq.heappush(self.awaited if cell.score is None else self.scored, (_expected(cell), number, cell))

    def best(self, awaited: bool) -> list[tuple[float, int, Cell]]:
        """Return the heap with the best leaf on top; leaves without a score count only with `awaited`."""
        if awaited and self.awaited and (not self.scored or self.awaited[0] < self.scored[0]):
            return self.awaited
        return self.scored


Score = Callable[[Levels, int], float | None]
"""The score of a centre, given how many centres were scored before; None if it must be measured."""


def propose(problem: Problem, count: int) -> list[Candidate]:
    """Return the default setting first, then the unknown centres in the order of the sweeps."""
    known = penalised(problem)
    return grow(problem, count, lambda levels, _: known.get(levels))


def penalised(problem: Problem) -> dict[Levels, float]:
    """Return the score of each finished point: its value; failed and infeasible ones are worse than all others."""
    worst = max((point.value for point in problem.ok), default=0.0)
    unit = max(abs(worst), 1.0)

    def score(point: Point) -> float:
        if point.outcome == "failed":
            return worst + 2.0 * unit
        return point.value if point.violation == 0 else worst + unit * (1.0 + math.tanh(point.violation))

    finished = (p for p in (*problem.warm, *problem.points) if p.outcome != "running")
    return {point.levels: score(point) for point in finished}


def grow(problem: Problem, count: int, score: Score) -> list[Candidate]:
    """Grow the tree until it asks for `count` centres that are not seen; fewer if the lattice is used up."""
    settings = problem.settings
    assert isinstance(settings, SooSettings)
    proposals = [point for point in design.start(problem, 0) if point.levels not in problem.seen]
    asked = {point.levels: point for point in proposals}
    dimension = len(problem.space.parameters)
    most = _CELLS + _CELLS_A_TRIAL * (len(problem.seen) + count)
    depths: list[Depth] = []
    scored = 0

    def add(depth: int, low: tuple[float, ...], high: tuple[float, ...], bound: float) -> None:
        nonlocal scored
        middle = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
        center = problem.snap(problem.space.from_unit(middle))
        scored += 1
        value = score(center, scored)
        if value is None and center not in problem.seen:
            asked.setdefault(
                center, Candidate(center, f"centre of a cell of {_share(low, high):.2g} of the space")
            )
        if depth == len(depths):
            depths.append(Depth())
        depths[depth].add(Cell(low, high, center, value, bound), scored)

    add(0, (0.0,) * dimension, (1.0,) * dimension, math.inf)
    while len(asked) < count and scored < most and _sweep(problem, depths, settings.sections, add):
        pass
    return list(asked.values())[:count]


def _sweep(
    problem: Problem,
    depths: list[Depth],
    sections: int,
    add: Callable[[int, tuple[float, ...], tuple[float, ...], float], None],
) -> bool:
    """Cut the best leaf of each depth if it beats those above it; return whether anything was cut.

    While all scores are awaited, a cell counts as good as the one that it was cut from.
    """
    for awaited in (False, True):
        best, cut = math.inf, False
        for depth in range(len(depths)):
            leaf, axis = _pick(problem, depths[depth], awaited, best)
            if leaf is None:
                continue
            best, cut = _expected(leaf), True
            for k in range(sections):
                width = (leaf.high[axis] - leaf.low[axis]) / sections
                low, high = leaf.low[axis] + k * width, leaf.low[axis] + (k + 1) * width
                part = (*leaf.low[:axis], low, *leaf.low[axis + 1 :])
                end = (*leaf.high[:axis], high, *leaf.high[axis + 1 :])
                add(depth + 1, part, end, _expected(leaf))
        if cut:
            return True
    return False


def _pick(problem: Problem, leaves: Depth, awaited: bool, best: float) -> tuple[Cell | None, int]:
    """Remove and return the best leaf that can be cut, if it is no worse than `best`, and the axis to cut."""
    while heap := leaves.best(awaited):
        if heap[0][0] > best:
            break
        leaf = heapq.heappop(heap)[2]
        axis = _axis(problem, leaf)
        if axis is not None:  # else a single lattice point
            return leaf, axis
    return None, 0


def _expected(cell: Cell) -> float:
    return cell.bound if cell.score is None else cell.score


def _axis(problem: Problem, cell: Cell) -> int | None:
    """Return the longest axis along which the cell still holds several levels."""
    first, last = problem.space.from_unit(cell.low), problem.space.from_unit([h - 1e-9 for h in cell.high])
    widths = [
        (high - low, -axis)
        for axis, (low, high) in enumerate(zip(cell.low, cell.high, strict=True))
        if last[axis] > first[axis]
    ]
    return -max(widths)[1] if widths else None


def _share(low: tuple[float, ...], high: tuple[float, ...]) -> float:
    return math.prod(b - a for a, b in zip(low, high, strict=True))
