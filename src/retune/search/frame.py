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

from retune.search.problem import Levels, Point

_ANISOTROPY = 0.1


@dataclass(frozen=True)
class Frame:
    """The state of MADS after a history.

    Attributes:
        sizes: the frame size of each coordinate, in levels.
        incumbent: the best point, None before the first result.
        restarts: how often the mesh had converged and was opened again.
        smallest: whether the next failed iteration ends in another restart.
    """

    sizes: tuple[int, ...]
    incumbent: Point | None
    restarts: int
    smallest: bool


def ladder(largest: int) -> list[int]:
    """Return the frame sizes 1, 2, 5, 10, 20, … up to `largest` levels; at least 1."""
    sizes, power = [1], 1
    while True:
        for mantissa in (2, 5, 10):
            if mantissa * power > largest:
                return sizes
            sizes.append(mantissa * power)
        power *= 10


def fold(
    points: Sequence[Point],
    ranges: Sequence[int],
    share: float,
    free: Collection[Levels],
    anisotropic: bool = True,
) -> Frame:
    """Return the frame after `points`.

    Args:
        points: warm-start points, then the study's own, in order; running ones are passed over.
        ranges: the number of levels less one of each coordinate.
        share: the first frame size as a share of the range.
        free: points that were not chosen by the poll (start design, warm start): they move the incumbent
            only.
    """
    ladders = [ladder(reach) for reach in ranges]
    first = [len(ladder(int(share * reach))) - 1 for reach in ranges]
    at, incumbent, stalled, restarts = list(first), None, 0, 0
    patience = sum(reach > 0 for reach in ranges) + 1
    for point in points:
        if point.outcome == "running":
            continue
        better = point.outcome == "ok" and (incumbent is None or point.merit < incumbent.merit)
        if better:
            if incumbent is not None and point.levels not in free:
                at = _enlarged(at, ladders, incumbent.levels, point.levels, anisotropic)
            incumbent = point
        if point.levels in free:
            continue
        stalled = 0 if better else stalled + 1
        if stalled == patience:
            stalled = 0
            if any(at):
                at = [max(index - 1, 0) for index in at]
            else:
                at, restarts = list(first), restarts + 1
    return Frame(
        tuple(sizes[i] for sizes, i in zip(ladders, at, strict=True)), incumbent, restarts, not any(at)
    )


def _enlarged(
    at: Sequence[int], ladders: Sequence[Sequence[int]], old: Levels, new: Levels, anisotropic: bool
) -> list[int]:
    grown = []
    for index, sizes, before, after in zip(at, ladders, old, new, strict=True):
        moved = abs(after - before) > _ANISOTROPY * sizes[index]
        grown.append(min(index + 1, len(sizes) - 1) if moved or not anisotropic else index)
    return grown
