"""What every algorithm sees: the history as points on the lattice of levels, in a fixed order.

Algorithms work in level coordinates (`Space.encode`), minimise one number and know constraints as excesses
that must not be positive. All of Katib's and of a study's peculiarities (goals, units, duplicates, missing
numbers, foreign trials) end here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from retune.records import by_parts
from retune.space import Assignment, Space, Value
from retune.study import Constraint, Search
from retune.study import Objective as Goal

if TYPE_CHECKING:
    import numpy as np

    from retune.search.settings import Settings

Levels = tuple[int, ...]
FALLBACK = "fallback"
"""How the origin of a point begins that was proposed because something broke or was too late."""
Outcome = Literal["ok", "failed", "running"]
SAME = "same"
_LARGEST = 1e100
"""Finite numbers beyond this count as this: sums of their squares stay finite in every algorithm."""


@dataclass(frozen=True)
class Observation:
    """One trial as the search sees it.

    Attributes:
        assignment: hyper-parameters by name; it is snapped to the grid. One that lies outside the space is
            ignored.
        status: a ``completed`` trial without a finite objective, or without a constrained metric, counts as
            ``failed``.
        values: the final number of each metric.
        name: the trial's name; orders trials without `number`, digits by their value.
        number: the trial's place in the study; gives the order in which results are read.
        warm: from an earlier study: known to the algorithm, but not one of this study's trials.
        rungs: shares of its whole training, below 1, and the value of the objective there, for searches that stop trials
            (`search.stopping`).
        source: which earlier study a warm trial is from; its values are compared with that study's alone. `SAME` for an
            earlier part of this search, whose values count as they are.
    """

    assignment: Mapping[str, Value]
    status: Literal["completed", "failed", "running", "early_stopped"]
    values: Mapping[str, float] = field(default_factory=dict)
    name: str = ""
    number: int | None = None
    warm: bool = False
    source: str = ""
    rungs: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Objective:
    """What is improved: the metric, its goal, limits on other metrics, and further metrics to improve with it."""

    metric: str = "validation_loss"
    goal: Literal["minimize", "maximize"] = "minimize"
    constraints: tuple[Constraint, ...] = ()
    further: tuple[Goal, ...] = ()

    @classmethod
    def of(cls, search: Search) -> Objective:
        """Return what a study file's search improves."""
        first, further = search.objective, tuple(search.further_objectives)
        return cls(first.metric, first.goal, tuple(search.constraints), further)

    @property
    def goals(self) -> tuple[Goal, ...]:
        """All metrics to improve, the first one first."""
        return (Goal(metric=self.metric, goal=self.goal), *self.further)

    @property
    def additional_metrics(self) -> list[str]:
        """The metrics that a trial must report besides the first objective, sorted."""
        return sorted({limit.metric for limit in self.constraints} | {goal.metric for goal in self.further})


@dataclass(frozen=True)
class Proposal:
    """A point to try next. `origin` says where it came from, e.g. ``start``, ``poll``, ``random fill``."""

    assignment: Assignment
    origin: str


class Candidate(NamedTuple):
    """A proposal of an algorithm, in levels."""

    levels: Levels
    origin: str


class Point(NamedTuple):
    """What is known of one lattice point.

    Attributes:
        levels: its place. outcome: ``ok`` alone has a value.
        value: to be minimised; the mean if the point was tried more than once.
        excesses: one number a constraint, relative to its limit; satisfied if not positive.
        further: the values of the further objectives, to be minimised too.
        source: the earlier study that it is from; None for this search's own.
        rungs: shares of a whole training, below 1, and the values there. whole: whether `value` is that of a whole training;
            else it is the last one, or the median of the whole ones if that is worse.
    """

    levels: Levels
    outcome: Outcome
    value: float = math.nan
    excesses: tuple[float, ...] = ()
    further: tuple[float, ...] = ()
    source: str | None = None
    rungs: tuple[tuple[float, float], ...] = ()
    whole: bool = True

    @property
    def values(self) -> tuple[float, ...]:
        """The values of all objectives."""
        return (self.value, *self.further)

    @property
    def violation(self) -> float:
        """Return h of Audet and Dennis (2009): the sum of squared positive excesses; 0 if feasible."""
        return sum(max(excess, 0.0) ** 2 for excess in self.excesses)

    @property
    def merit(self) -> tuple[float, float]:
        """Return a key that orders ok points: feasible ones by value, before infeasible ones by violation."""
        violation = self.violation
        return (violation, self.value) if violation > 0 else (0.0, self.value)


@dataclass(frozen=True)
class Problem:
    """A search problem at one moment. `propose` of an algorithm is a function of this alone.

    Attributes:
        points: this study's distinct points, in the order of their first trial.
        warm: those of earlier studies, each at the value that is expected of it here (`retune.search.transfer`).
        earlier: their results as they were measured, by study.
        issued: how many points were asked for so far; at least as many as are visible.
        seed: of the study. settings: the algorithm's own.
        constraints, objectives: how many there are.
    """

    space: Space
    points: tuple[Point, ...]
    warm: tuple[Point, ...]
    settings: Settings
    seed: int
    issued: int
    constraints: int = 0
    objectives: int = 1
    earlier: tuple[Point, ...] = ()

    @cached_property
    def seen(self) -> frozenset[Levels]:
        """All points that need no further trial: finished, running or known from earlier studies."""
        return frozenset(point.levels for point in (*self.warm, *self.points))

    @cached_property
    def ok(self) -> tuple[Point, ...]:
        """The points with a value, earlier studies' first."""
        return tuple(p for p in (*self.warm, *self.points) if p.outcome == "ok")

    @cached_property
    def failed(self) -> tuple[Point, ...]:
        """The points known to give no value."""
        return tuple(p for p in (*self.warm, *self.points) if p.outcome == "failed")

    @cached_property
    def running(self) -> tuple[Point, ...]:
        """The points whose trials are under way."""
        return tuple(p for p in self.points if p.outcome == "running")

    @property
    def best(self) -> Point | None:
        """The best point so far, feasible ones first; the earlier one of equals."""
        return min(self.ok, key=lambda point: point.merit, default=None)

    def snap(self, levels: Sequence[int]) -> Levels:
        """Return the canonical levels of a point: two levels that print the same value are one."""
        return self.space.encode(self.space.decode(levels))

    def call_seed(self, purpose: str, below: int = 2**31) -> int:
        """Return a seed in [0, below): a hash of the study's seed, the points issued and the purpose."""
        return hashed(self.seed, self.issued, purpose) % below

    def rng(self, purpose: str) -> np.random.Generator:
        """Return a fresh generator for this call and purpose."""
        import numpy as np

        return np.random.default_rng(hashed(self.seed, self.issued, purpose))


def hashed(*parts: Any) -> int:
    """Return a 63-bit integer from the text of `parts`; the same in every process."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def pose(
    space: Space,
    objective: Objective,
    settings: Settings,
    history: Iterable[Observation],
    seed: int,
    issued: int | None,
) -> Problem:
    """Build the problem from a history in any order.

    Observations outside the space are dropped: they are another study's, or the bounds have shrunk since.
    Early-stopped trials count with values no better than the medians of the completed ones: what they had
    reached when they were stopped is not what they would have given.
    """
    inside = [(levels, entry) for entry in history if (levels := _levels(space, entry)) is not None]
    inside.sort(key=_order)
    points = _merge(objective, [(levels, entry) for levels, entry in inside if not entry.warm])
    before: dict[str, list[tuple[Levels, Observation]]] = {}
    for levels, entry in inside:
        if entry.warm:
            before.setdefault(entry.source, []).append((levels, entry))
    warm = [
        point._replace(source=None if source == SAME else source)
        for source, entries in sorted(before.items())
        for point in _merge(objective, entries)
    ]
    known = {point.levels for point in points}
    return Problem(
        space=space,
        points=points,
        warm=tuple(point for point in warm if point.levels not in known),
        settings=settings,
        seed=seed,
        issued=sum(not entry.warm for _, entry in inside) if issued is None else issued,
        constraints=len(objective.constraints),
        objectives=len(objective.goals),
        earlier=tuple(point for point in warm if point.source is not None),
    )


def _levels(space: Space, entry: Observation) -> Levels | None:
    """Return the levels of an observation; None if it is outside the space."""
    try:
        return space.encode(entry.assignment) if space.contains(entry.assignment) else None
    except (KeyError, ValueError, TypeError):
        return None


def _order(placed: tuple[Levels, Observation]) -> tuple[Any, ...]:
    levels, entry = placed
    number = math.inf if entry.number is None else entry.number
    values = sorted((metric, repr(value)) for metric, value in entry.values.items())
    return number, by_parts(entry.name), levels, entry.status, values


def _merge(objective: Objective, entries: Sequence[tuple[Levels, Observation]]) -> tuple[Point, ...]:
    """Return one point for each place, in the order of the entries."""
    by_levels: dict[Levels, list[tuple[Observation, Outcome, tuple[float, ...]]]] = {}
    for levels, entry in entries:
        by_levels.setdefault(levels, []).append((entry, *_read(objective, entry)))
    objectives = len(objective.goals)
    completed = [
        numbers[:objectives]
        for group in by_levels.values()
        for entry, outcome, numbers in group
        if outcome == "ok" and entry.status == "completed"
    ]
    floor = [median(column) for column in zip(*completed, strict=True)] or [-math.inf] * objectives
    points = []
    for levels, group in by_levels.items():
        rows = [
            [*map(max, n, floor), *n[objectives:]] if e.status == "early_stopped" else n
            for e, o, n in group
            if o == "ok"
        ]
        if rows:
            means = tuple(fmean(column) for column in zip(*rows, strict=True))
            sign = -1.0 if objective.goal == "maximize" else 1.0
            rungs = tuple(
                (s, _bounded(sign * v)) for e, _, _ in group for s, v in e.rungs if math.isfinite(v)
            )
            whole = any(e.status == "completed" and o == "ok" for e, o, _ in group)
            points.append(
                Point(
                    levels, "ok", means[0], means[objectives:], means[1:objectives], rungs=rungs,
                    whole=whole or not rungs,
                )
            )  # fmt: skip
        else:
            running = any(outcome == "running" for _, outcome, _ in group)
            points.append(Point(levels, "running" if running else "failed"))
    return tuple(points)


def _read(objective: Objective, entry: Observation) -> tuple[Outcome, tuple[float, ...]]:
    """Return the outcome of a trial, the values to minimise and the excess of each constraint."""
    if entry.status in ("failed", "running"):
        return ("running" if entry.status == "running" else "failed"), ()
    numbers = []
    for goal in objective.goals:
        value = entry.values.get(goal.metric, math.nan)
        numbers.append(_bounded(-value if goal.goal == "maximize" else value))
    for constraint in objective.constraints:
        measured = entry.values.get(constraint.metric, math.nan)
        limit = constraint.max if constraint.max is not None else constraint.min
        assert limit is not None
        if not math.isfinite(measured):
            return "failed", ()
        measured = _bounded(measured)
        excess = measured - limit if constraint.max is not None else limit - measured
        numbers.append(_bounded(excess / (abs(limit) or 1.0)))
    return ("ok", tuple(numbers)) if all(map(math.isfinite, numbers)) else ("failed", ())


def _bounded(value: float) -> float:
    """Return a number between the largest ones that algorithms see; NaN and infinite ones stay."""
    return min(max(value, -_LARGEST), _LARGEST) if math.isfinite(value) else value
