"""The MADS frame, folded from the history: which steps the poll takes from the incumbent.

NOMAD keeps its mesh in memory; here it is computed from the trials at every call, so that a restart loses
nothing. The rules are NOMAD's own (GMesh, Audet, Le Digabel and Tribes 2019): frame sizes go through 1, 2, 5,
10, 20, 50, … levels; after a success the frame grows in the coordinates that moved by more than a tenth of
it; after a failed iteration all coordinates shrink by one step. A failed iteration is here n + 1 finished
trials in a row without a success, since trials end one by one and in any order.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from retune.search.problem import Levels, Point

_ANISOTROPY = 0.1
State = tuple[int, ...]


@dataclass(frozen=True)
class Frame:
    """The state of MADS after a history.

    Attributes:
        sizes: the frame size of each coordinate, in levels.
        incumbent: the best point, None before the first result.
        restarts: how often the mesh had converged and was opened again.
        smallest: whether the next failed iteration ends in another restart.
        failures: failed iterations since the last success.
        before: where the incumbent was before, while no trial has ended since it moved.
    """

    sizes: tuple[int, ...]
    incumbent: Point | None
    restarts: int
    smallest: bool
    failures: int = 0
    before: Levels | None = None


def ladder(largest: int) -> list[int]:
    """Return the frame sizes 1, 2, 5, 10, 20, … up to `largest` levels; at least 1."""
    sizes, power = [1], 1
    while True:
        for mantissa in (2, 5, 10):
            if mantissa * power > largest:
                return sizes
            sizes.append(mantissa * power)
        power *= 10


@dataclass(frozen=True)
class Steps:
    """The frame sizes that each coordinate may take, and NOMAD's rules of how they change.

    A state is one index into each coordinate's ladder.

    Attributes:
        ranges: the number of levels less one of each coordinate.
        share, least: the first and the smallest frame size, as shares of the range.
        anisotropic: whether a success enlarges only the coordinates that moved.
    """

    ranges: tuple[int, ...]
    share: float
    least: float = 0.0
    anisotropic: bool = True

    @cached_property
    def ladders(self) -> list[list[int]]:
        """The sizes of each coordinate, rising."""
        return [ladder(reach) for reach in self.ranges]

    @cached_property
    def first(self) -> State:
        """The state to begin with."""
        return tuple(max(a, b) for a, b in zip(self._at(self.share), self.floor, strict=True))

    @cached_property
    def floor(self) -> State:
        """The state of a converged mesh."""
        return self._at(self.least)

    @property
    def patience(self) -> int:
        """How many finished trials without a success are a failed iteration: n + 1."""
        return sum(reach > 0 for reach in self.ranges) + 1

    def _at(self, share: float) -> State:
        return tuple(len(ladder(int(share * reach))) - 1 for reach in self.ranges)

    def sizes(self, at: State) -> tuple[int, ...]:
        """Return the frame size of each coordinate, in levels."""
        return tuple(sizes[i] for sizes, i in zip(self.ladders, at, strict=True))

    def enlarged(self, at: State, old: Levels, new: Levels) -> State:
        """Return the state after a success that moved from `old` to `new`."""
        grown = []
        for index, sizes, before, after in zip(at, self.ladders, old, new, strict=True):
            moved = abs(after - before) > _ANISOTROPY * sizes[index]
            grown.append(min(index + 1, len(sizes) - 1) if moved or not self.anisotropic else index)
        return tuple(grown)

    def refined(self, at: State) -> State | None:
        """Return the state after a failed iteration; None if the mesh had converged."""
        if at == self.floor:
            return None
        return tuple(max(index - 1, low) for index, low in zip(at, self.floor, strict=True))


def fold(points: Sequence[Point], steps: Steps, free: Collection[Levels]) -> Frame:
    """Return the frame after `points`.

    Args:
        points: warm-start points, then the study's own, in order; running ones are passed over.
        steps: the rules.
        free: points that were not chosen by the poll (start design, warm start): they move the incumbent
            only.
    """
    at, incumbent, before = steps.first, None, None
    stalled = failures = restarts = 0
    for point in points:
        if point.outcome == "running":
            continue
        better = point.outcome == "ok" and (incumbent is None or point.merit < incumbent.merit)
        before = incumbent.levels if better and incumbent is not None else None
        if better:
            if incumbent is not None and point.levels not in free:
                at = steps.enlarged(at, incumbent.levels, point.levels)
            incumbent, failures = point, 0
        if point.levels in free:
            continue
        stalled = 0 if better else stalled + 1
        if stalled == steps.patience:
            stalled, failures = 0, failures + 1
            refined = steps.refined(at)
            at, restarts = (refined, restarts) if refined else (steps.first, restarts + 1)
    return Frame(steps.sizes(at), incumbent, restarts, at == steps.floor, failures, before)
