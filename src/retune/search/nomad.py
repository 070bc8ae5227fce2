"""Mesh adaptive direct search (Audet and Dennis 2006) by NOMAD 4 (Audet et al. 2022), in any batch size.

NOMAD proposes points from a cache of all results and a frame size (`PyNomad.suggest`: poll, quadratic-model
and Nelder-Mead search); the frame is folded from the history (`retune.search.frame`). NOMAD sees integer
levels, so its mesh is the grid of the space. The poll's directions are drawn from the incumbent and its frame,
so that one poll completes over as many calls as it takes. Differences from the textbook: an iteration fails
after n + 1 trials without a success, whichever they were; a categorical parameter keeps the incumbent's value
in NOMAD, and its other values are tried by an extended poll (Audet and Dennis 2001).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from retune.search import design, front, nomad_process
from retune.search.frame import Frame, Steps, fold
from retune.search.problem import FALLBACK, Candidate, Levels, Point, Problem, hashed
from retune.search.settings import Settings

if TYPE_CHECKING:
    from retune.search.acquisition import Acquisition

_BASIN = 0.2  # a point further away in some coordinate of the unit cube may be in another basin
_SEEDS = 1_000_000  # PyNomad takes O(seed) to set one
_SPECULATIVE = 4.0  # NOMAD's SPECULATIVE_SEARCH_BASE_FACTOR
_VNS_TURN = 4  # every fourth point is shaken while no poll succeeds
# Parameters: with more, NOMAD's models, and its own sorting by them, take minutes of CPU a call
_MODELLED = 20
_POLL_ALONE = {
    "NM_SEARCH": "no",
    "QUAD_MODEL_SEARCH": "no",
    "EVAL_QUEUE_SORT": "DIR_LAST_SUCCESS",
}


class NomadSettings(Settings):
    """Settings of `nomad`, named as NOMAD names them."""

    paper: bool = Field(
        False,
        description="as Tribes et al. (2024) ran it: no Latin hypercube, speculative search, earlier results as a cache",
    )
    LH_SEARCH: int = Field(8, ge=0, le=1000, description="Latin-hypercube points after the default setting")
    INITIAL_FRAME_SIZE: float | None = Field(
        None, gt=0, le=1, description="first frame size, as a share of each range; 0.1 if not given"
    )
    INITIAL_MESH_SIZE: float | None = Field(
        None, gt=0, le=1, description="in its place: the frame is the root of n times it, as in NOMAD"
    )
    MIN_FRAME_SIZE: float = Field(
        0.0, ge=0, le=1, description="a mesh has converged at this share of each range; 0: at the grid"
    )
    DIRECTION_TYPE: Literal["ORTHO N+1 QUAD", "ORTHO N+1 NEG", "ORTHO 2N", "DOUBLE", "SINGLE"] = Field(
        "ORTHO N+1 QUAD", description="how the poll's directions are built"
    )
    QUAD_MODEL_SEARCH: bool = Field(
        True, description="search by a quadratic model of the results near the incumbent"
    )
    NM_SEARCH: bool = Field(True, description="search by a Nelder-Mead step over the best results")
    VNS_MADS_SEARCH: bool = Field(
        False, description="variable neighbourhood search: leave the incumbent, further with each failure"
    )
    ANISOTROPIC_MESH: bool = Field(True, description="grow the frame only along the coordinates that moved")
    EVAL_QUEUE_SORT: Literal["SURROGATE", "RANDOM"] = Field(
        "SURROGATE",
        description="which of NOMAD's points are tried first: those a model expects most of, or any",
    )
    BB_OUTPUT_TYPE: Literal["PB", "EB"] = Field(
        "PB", description="constraints as progressive or as extreme barrier"
    )
    SEED: int | None = Field(None, ge=0, lt=2**31, description="NOMAD's name of `seed`")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.INITIAL_FRAME_SIZE is not None and self.INITIAL_MESH_SIZE is not None:
            raise ValueError(
                "give either 'INITIAL_FRAME_SIZE' or 'INITIAL_MESH_SIZE', "
                f"but got {self.INITIAL_FRAME_SIZE:g} and {self.INITIAL_MESH_SIZE:g}"
            )
        changed = sorted(self.model_fields_set - {"paper", "seed", "SEED"})
        if self.paper and changed:
            raise ValueError(f"'paper' sets all but the seed, but got {changed} too")
        if self.SEED is not None and self.seed not in (None, self.SEED):
            raise ValueError(f"give either 'seed' or 'SEED', but got {self.seed} and {self.SEED}")
        return self

    @property
    def as_measured(self) -> bool:
        """The paper gave its first round to NOMAD as a cache, values and all."""
        return self.paper

    def own_seed(self) -> int | None:
        """Return the seed that goes before the study's, under either name."""
        return self.SEED if self.SEED is not None else self.seed


def propose(problem: Problem, count: int) -> list[Candidate]:
    """Return the start design first, then what NOMAD proposes from the results."""
    settings = _settings(problem)
    begin = design.start(problem, 0 if settings.paper else settings.LH_SEARCH)
    # Half of it shows whether that study is like this one
    if any(point.outcome == "ok" for point in problem.earlier):
        begin = begin[: 1 + settings.LH_SEARCH // 2]
    proposals = [point for point in begin if point.levels not in problem.seen][:count]
    if len(proposals) == count or not problem.ok:
        return proposals
    known = {point.levels for point in proposals}
    more = around_incumbent(problem, begin, count - len(proposals))
    return proposals + [candidate for candidate in more if candidate.levels not in known]


def around_incumbent(problem: Problem, begin: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return what NOMAD proposes, at least `count` points if it can, the most promising first.

    `begin` is the start design.
    """
    free = {c.levels for c in begin} | {p.levels for p in problem.warm}
    steps = _steps(problem)
    if problem.objectives == 1:
        return _around(problem, fold((*problem.warm, *problem.points), steps, free), steps, count)
    views = front.focus(problem, steps, free, most=max(round(count / steps.patience), 1))
    share = -(-count // len(views))
    neighbours = [_around(single, frame, steps, share) for single, frame in views]
    return [c for part in neighbours for c in part[:share]] + [c for part in neighbours for c in part[share:]]


def _around(problem: Problem, frame: Frame, steps: Steps, count: int) -> list[Candidate]:
    """Return what NOMAD proposes around the incumbent of a frame.

    NOMAD returns more points than asked, in lexicographic order; the first ones would be biased to low levels.
    """
    assert frame.incumbent is not None
    center, shown = _start(problem, frame)
    groups: dict[int, list[Candidate]] = {0: _other_categories(problem, center)}
    answer = _ask_nomad(problem, frame, steps, center, shown, count)
    for point, index in answer.points:
        groups.setdefault(index, []).append(Candidate(tuple(point), _origin(frame, center, point)))
    if answer.failure is not None:
        groups[1] = _coordinate_poll(problem, frame, center, answer.failure)
    acquisition = _acquisition(problem)
    ranked = _vns_points(problem, frame, acquisition, count) if acquisition else []
    ranked += _speculative(problem, frame)
    for index in sorted(groups):
        ranked += _sorted(problem, groups[index], acquisition, ranked, count)
    return ranked


def _settings(problem: Problem) -> NomadSettings:
    assert isinstance(problem.settings, NomadSettings)
    return problem.settings


def _steps(problem: Problem) -> Steps:
    settings = _settings(problem)
    ranges = tuple(p.levels - 1 if p.ordered else 0 for p in problem.space.parameters)
    share = settings.INITIAL_FRAME_SIZE or 0.1
    if settings.INITIAL_MESH_SIZE is not None:
        share = min(settings.INITIAL_MESH_SIZE * math.sqrt(sum(reach > 0 for reach in ranges)), 1.0)
    return Steps(ranges, share, settings.MIN_FRAME_SIZE, settings.ANISOTROPIC_MESH)


def _start(problem: Problem, frame: Frame) -> tuple[Levels, list[Point]]:
    """Return the point to poll around, and the points to show to NOMAD, which polls around the best of them.

    After a mesh has converged, every other restart leaves the basin: it hides all that is near the incumbent.
    """
    assert frame.incumbent is not None
    everything = [*problem.warm, *problem.points]
    if frame.restarts % 2 == 0:
        return frame.incumbent.levels, everything
    home = problem.space.to_unit(frame.incumbent.levels)

    def away(point: Point) -> bool:
        position = problem.space.to_unit(point.levels)
        return max(abs(a - b) for a, b in zip(position, home, strict=True)) > _BASIN

    far = [point for point in everything if away(point)]
    best = min((p for p in far if p.outcome == "ok"), key=lambda point: point.merit, default=None)
    return (best.levels, far) if best else (frame.incumbent.levels, everything)


def _origin(frame: Frame, center: Levels, levels: Sequence[int]) -> str:
    """Return where a point came from; NOMAD does not say, but its poll never leaves the frame."""
    inside = all(abs(a - b) <= s for a, b, s in zip(levels, center, frame.sizes, strict=True))
    name = "poll" if inside else "model search"
    if not frame.restarts:
        return name
    return f"{name}, restart {frame.restarts}" + (" away from the best" if frame.restarts % 2 else "")


def _other_categories(problem: Problem, center: Levels) -> list[Candidate]:
    """Return the incumbent with one categorical parameter changed, where that is new."""
    neighbours = []
    for axis, parameter in enumerate(problem.space.parameters):
        if parameter.ordered:
            continue
        for level in range(parameter.levels):
            levels = (*center[:axis], level, *center[axis + 1 :])
            if levels not in problem.seen:
                neighbours.append(Candidate(levels, "poll of categories"))
    return neighbours


def _acquisition(problem: Problem) -> Acquisition | None:
    """Return the model that ranks NOMAD's points; None if the settings turn it off."""
    if _settings(problem).EVAL_QUEUE_SORT == "RANDOM" or len(problem.ok) < 2:
        return None
    from retune.search.acquisition import Acquisition

    return Acquisition(problem)


def _sorted(
    problem: Problem,
    candidates: list[Candidate],
    acquisition: Acquisition | None,
    before: Sequence[Candidate],
    count: int,
) -> list[Candidate]:
    """Return the candidates in the order in which they should be tried after those `before`.

    Only the first `count` places are worth a model's while.
    """
    listed = {candidate.levels for candidate in before}
    left = [candidate for candidate in candidates if candidate.levels not in listed]
    order = problem.rng("order").permutation(len(left)).tolist()
    left = [left[k] for k in order]
    ranked: list[Candidate] = []
    while acquisition and left and len(before) + len(ranked) < count:
        best = acquisition.ranked(left, listed)
        assert best is not None
        listed.add(best.levels)
        ranked.append(best)
        left = [candidate for candidate in left if candidate.levels != best.levels]
    return ranked + left


def _vns_points(problem: Problem, frame: Frame, acquisition: Acquisition, count: int) -> list[Candidate]:
    """Return the points of a variable neighbourhood search (Audet, Bechard and Le Digabel 2008).

    While the polls fail, the incumbent is shaken, further with each failed iteration, and the model's descent
    from there is proposed. NOMAD cannot do this from a cache: there it ends the process.
    """
    assert frame.incumbent is not None
    turns = [k for k in range(problem.issued, problem.issued + count) if k % _VNS_TURN == 0]
    if not _settings(problem).VNS_MADS_SEARCH or frame.failures == 0 or not turns:
        return []
    import numpy as np

    from retune.search.acquisition import climb

    rng, points = problem.rng("vns"), []
    home = np.array(problem.space.to_unit(frame.incumbent.levels))
    reach = min(0.1 * frame.failures, 1.0)
    for _ in turns:
        position = np.clip(home + reach * rng.uniform(-1, 1, size=len(home)), 0, 1)
        row = np.array([problem.space.from_unit(position.tolist())])
        end = climb(acquisition.lattice, acquisition.value, row, acquisition.value(row))[0]
        levels = problem.snap(end.tolist())
        if levels not in problem.seen:
            points.append(Candidate(levels, f"VNS: shaken by {reach:.1f} of the range"))
    return points


def _speculative(problem: Problem, frame: Frame) -> list[Candidate]:
    """Return the point further along the direction of a success (Audet and Dennis 2006, 2.2): NOMAD's SPECULATIVE_SEARCH.

    NOMAD cannot do it from a cache, which holds no directions. As there, the direction is taken to the edge of the frame
    and by a factor of 4 beyond.
    """
    if not _settings(problem).paper or frame.before is None or frame.incumbent is None:
        return []
    home = frame.incumbent.levels
    moves = [
        after - before if parameter.ordered else 0
        for after, before, parameter in zip(home, frame.before, problem.space.parameters, strict=True)
    ]
    reach = max((abs(move) / size for move, size in zip(moves, frame.sizes, strict=True)), default=0.0)
    if reach == 0:
        return []
    tops = [parameter.levels - 1 for parameter in problem.space.parameters]
    levels = problem.snap(
        [
            min(max(round(position + _SPECULATIVE * move / reach), 0), top)
            for position, move, top in zip(home, moves, tops, strict=True)
        ]
    )
    return [] if levels in problem.seen else [Candidate(levels, "speculative search")]


def _coordinate_poll(problem: Problem, frame: Frame, center: Levels, reason: str) -> list[Candidate]:
    """Return the steps of one frame size along each coordinate: a poll that needs no NOMAD."""
    points = []
    for axis, (parameter, size) in enumerate(zip(problem.space.parameters, frame.sizes, strict=True)):
        for level in (center[axis] - size, center[axis] + size):
            levels = (*center[:axis], level, *center[axis + 1 :])
            if parameter.ordered and 0 <= level < parameter.levels and levels not in problem.seen:
                points.append(Candidate(levels, f"{FALLBACK}: coordinate poll, NOMAD failed: {reason}"))
    return points


def _ask_nomad(
    problem: Problem, frame: Frame, steps: Steps, center: Levels, shown: Sequence[Point], count: int
) -> nomad_process.Answer:
    """Ask NOMAD about the ordered parameters around `center`; its points as whole points of the space."""
    active = problem.space.active(center)
    axes = [i for i, p in enumerate(problem.space.parameters) if p.ordered and p.levels > 1 and active[i]]
    if not axes:
        return nomad_process.Answer()
    fixed = [i for i in range(len(center)) if i not in axes]
    near = [p for p in shown if all(p.levels[i] == center[i] for i in fixed)]
    known = [
        [levels[i] for i in axes] for levels in problem.seen if all(levels[i] == center[i] for i in fixed)
    ]
    request = nomad_process.Request(
        _parameters(problem, near, axes),
        _cache(problem, near, axes),
        known,
        _tries(problem, frame, steps, center, axes, count),
        count,
    )
    answer = nomad_process.ask(request)
    points = []
    for proposed, index in answer.points:
        levels = list(center)
        for axis, level in zip(axes, proposed, strict=True):
            levels[axis] = level
        points.append((levels, index))
    return nomad_process.Answer(points, answer.failure)


def _tries(
    problem: Problem, frame: Frame, steps: Steps, center: Levels, axes: Sequence[int], count: int
) -> list[tuple[int, list[int]]]:
    """Return what to ask NOMAD in turn until there are enough points: other seeds, then larger frames.

    The seeds come from the center and the frame, not from the call: until one of them changes, every call sees
    the same poll, less what is known of it.
    """
    sizes = list(frame.sizes)
    frames = [sizes] * min(4 + count // 4, 24)
    for _ in range(4):
        sizes = [
            ladder[min(ladder.index(size) + 1, len(ladder) - 1)]
            for ladder, size in zip(steps.ladders, sizes, strict=True)
        ]
        frames.append(sizes)
    return [
        (
            hashed(problem.seed, center, sizes, frame.restarts, f"nomad {k}") % _SEEDS,
            [sizes[axis] for axis in axes],
        )
        for k, sizes in enumerate(frames)
    ]


def _parameters(problem: Problem, near: Sequence[Point], axes: Sequence[int]) -> Mapping[str, str]:
    settings = _settings(problem)
    highest = [problem.space.parameters[axis].levels - 1 for axis in axes]
    chosen = {
        "DISPLAY_DEGREE": "0",
        "DIMENSION": str(len(axes)),
        "BB_INPUT_TYPE": f"( {' '.join('I' * len(axes))} )",
        "LOWER_BOUND": f"( {' '.join('0' * len(axes))} )",
        "UPPER_BOUND": f"( {' '.join(map(str, highest))} )",
        "BB_OUTPUT_TYPE": " ".join(["OBJ", *["PB"] * problem.constraints]),
        "MEGA_SEARCH_POLL": "yes",
        "DIRECTION_TYPE": settings.DIRECTION_TYPE,
        "QUAD_MODEL_SEARCH": "yes" if settings.QUAD_MODEL_SEARCH else "no",
        "NM_SEARCH": "yes" if settings.NM_SEARCH else "no",
    }
    if len(axes) > _MODELLED:
        chosen |= _POLL_ALONE
        if settings.DIRECTION_TYPE == "ORTHO N+1 QUAD":  # the last direction without a model
            chosen["DIRECTION_TYPE"] = "ORTHO N+1 NEG"
    violations = sorted(p.violation for p in near if p.outcome == "ok" and p.violation > 0)
    if violations:  # the barrier comes down as better infeasible points are found
        chosen["H_MAX_0"] = repr(violations[(len(violations) - 1) // 2] * 1.000001)
    return chosen


def _cache(problem: Problem, points: Sequence[Point], axes: Sequence[int]) -> str:
    """Return the text of a NOMAD cache file, in the long form: NOMAD misreads the short one.

    Under the extreme barrier infeasible points count as failed once there is a feasible one.
    """
    lines = ["CACHE_HITS 0", " ".join(["BB_OUTPUT_TYPE OBJ", *["PB"] * problem.constraints])]
    extreme = _settings(problem).BB_OUTPUT_TYPE == "EB"
    extreme = extreme and any(p.outcome == "ok" and p.violation == 0 for p in points)
    for point in points:
        if point.outcome == "running":
            continue
        good = point.outcome == "ok" and not (extreme and point.violation > 0)
        coordinates = " ".join(f"{point.levels[axis]}.0" for axis in axes)
        numbers = [point.value, *point.excesses] if good else ["nan"] * (1 + problem.constraints)
        status = "BB_EVAL_OK" if good else "BB_EVAL_FAILED"
        lines.append(
            f"( {coordinates} ) {status} ( {' '.join(map(str, numbers))} ) SURROGATE_EVAL_NOT_STARTED ( )"
        )
    return "\n".join(lines) + "\n"
