"""Mesh adaptive direct search (Audet and Dennis 2006) by NOMAD 4 (Audet et al. 2022), in any batch size.

NOMAD proposes points from a cache of all results and a frame size (`PyNomad.suggest`: poll, quadratic-model
and Nelder-Mead search); the frame is folded from the history (`retune.search.frame`). NOMAD sees integer
levels, so its mesh is the grid of the space. Differences from the textbook: the poll's basis is drawn anew at
each call, so the convergence theory of MADS is not inherited; a categorical parameter keeps the incumbent's
value in NOMAD, and its other values are tried by an extended poll (Audet and Dennis 2001).
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from retune.search import design, nomad_solver
from retune.search.frame import Frame, fold, ladder
from retune.search.problem import Candidate, Levels, Point, Problem
from retune.search.settings import Settings

_LOG = logging.getLogger("retune.search")
_CPU_SECONDS = 6  # per process; what decides is not the clock, so that a busy machine answers the same
_WALL_SECONDS = 30
_MEMORY_MIB = 2048
_TOO_LATE = "no answer in time"
_BASIN = 0.2  # a point further away in some coordinate of the unit cube may lie in another basin
_SEEDS = 1_000_000  # PyNomad takes O(seed) to set one

# What to try when NOMAD crashes or hangs on a history: ever simpler, until only the poll is left.
_FALLBACKS: tuple[Mapping[str, str], ...] = (
    {},
    {"NM_SEARCH": "no"},
    {"NM_SEARCH": "no", "QUAD_MODEL_SEARCH": "no"},
    {
        "NM_SEARCH": "no",
        "QUAD_MODEL_SEARCH": "no",
        "DIRECTION_TYPE": "ORTHO 2N",
        "EVAL_QUEUE_SORT": "DIR_LAST_SUCCESS",
    },
)


class NomadSettings(Settings):
    """Settings of `nomad`, named as NOMAD names them."""

    LH_SEARCH: int = Field(8, ge=0, le=1000, description="Latin-hypercube points after the default setting")
    INITIAL_FRAME_SIZE: float = Field(
        0.1, gt=0, le=1, description="first frame size, as a share of each range"
    )
    DIRECTION_TYPE: Literal["ORTHO N+1 QUAD", "ORTHO N+1 NEG", "ORTHO 2N", "DOUBLE", "SINGLE"] = Field(
        "ORTHO N+1 QUAD", description="how the poll's directions are built"
    )
    QUAD_MODEL_SEARCH: bool = Field(
        True, description="search by a quadratic model of the results near the incumbent"
    )
    NM_SEARCH: bool = Field(True, description="search by a Nelder-Mead step over the best results")
    ANISOTROPIC_MESH: bool = Field(True, description="grow the frame only along the coordinates that moved")
    EVAL_QUEUE_SORT: Literal["SURROGATE", "RANDOM"] = Field(
        "SURROGATE",
        description="which of NOMAD's points are tried first: those a model expects most of, or any",
    )
    BB_OUTPUT_TYPE: Literal["PB", "EB"] = Field(
        "PB", description="constraints as progressive or as extreme barrier"
    )


def propose(problem: Problem, count: int) -> list[Candidate]:
    """Return the start design first, then what NOMAD proposes from the results."""
    settings = _settings(problem)
    begin = design.start(problem, settings.LH_SEARCH)
    found = [point for point in begin if point.levels not in problem.seen][:count]
    if len(found) == count or not problem.ok:
        return found
    known = {point.levels for point in found}
    more = around_incumbent(problem, begin, count - len(found))
    return found + [candidate for candidate in more if candidate.levels not in known]


def around_incumbent(problem: Problem, begin: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return what NOMAD proposes, at least `count` points if it can, the most promising first.

    NOMAD returns more points than asked, in lexicographic order; the first ones would be biased to low levels.
    `begin` is the start design.
    """
    settings = _settings(problem)
    free = {c.levels for c in begin} | {p.levels for p in problem.warm}
    ranges = [p.levels - 1 if p.ordered else 0 for p in problem.space.parameters]
    history = (*problem.warm, *problem.points)
    frame = fold(history, ranges, settings.INITIAL_FRAME_SIZE, free, settings.ANISOTROPIC_MESH)
    assert frame.incumbent is not None
    center, shown = _start(problem, frame)
    axes = [i for i, p in enumerate(problem.space.parameters) if p.ordered and p.levels > 1]
    groups: dict[int, list[Candidate]] = {0: _other_categories(problem, center)}
    for point, index in _solve(problem, center, shown, axes, _tries(problem, frame, axes, count), count):
        levels = list(center)
        for axis, level in zip(axes, point, strict=True):
            levels[axis] = level
        groups.setdefault(index, []).append(Candidate(tuple(levels), _origin(frame, center, levels)))
    return [candidate for index in sorted(groups) for candidate in _sorted(problem, groups[index])]


def _settings(problem: Problem) -> NomadSettings:
    assert isinstance(problem.settings, NomadSettings)
    return problem.settings


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
        place = problem.space.to_unit(point.levels)
        return max(abs(a - b) for a, b in zip(place, home, strict=True)) > _BASIN

    far = [point for point in everything if away(point)]
    best = min((p for p in far if p.outcome == "ok"), key=lambda point: point.merit, default=None)
    return (best.levels, far) if best else (frame.incumbent.levels, everything)


def _sorted(problem: Problem, candidates: list[Candidate]) -> list[Candidate]:
    """Return the candidates in the order in which they should be tried."""
    order = problem.rng("order").permutation(len(candidates)).tolist()
    candidates = [candidates[k] for k in order]
    if _settings(problem).EVAL_QUEUE_SORT == "RANDOM" or len(candidates) < 2 or len(problem.ok) < 2:
        return candidates
    from retune.search.acquisition import Promise

    promise = Promise(problem)
    taken: set[Levels] = set()
    ranked = []
    while (candidate := promise.ranked(candidates, taken)) is not None:
        taken.add(candidate.levels)
        ranked.append(candidate)
    return ranked


def _origin(frame: Frame, center: Levels, levels: Sequence[int]) -> str:
    """Return where a point came from; NOMAD does not say, but its poll never leaves the frame."""
    inside = all(abs(a - b) <= s for a, b, s in zip(levels, center, frame.sizes, strict=True))
    name = "poll" if inside else "model search"
    if not frame.restarts:
        return name
    return f"{name}, restart {frame.restarts}" + (" away from the best" if frame.restarts % 2 else "")


def _other_categories(problem: Problem, center: Levels) -> list[Candidate]:
    """Return the incumbent with one categorical parameter changed, where that is new."""
    found = []
    for axis, parameter in enumerate(problem.space.parameters):
        if parameter.ordered:
            continue
        for level in range(parameter.levels):
            levels = (*center[:axis], level, *center[axis + 1 :])
            if levels not in problem.seen:
                found.append(Candidate(levels, "poll of categories"))
    return found


def _tries(problem: Problem, frame: Frame, axes: Sequence[int], count: int) -> list[tuple[int, list[str]]]:
    """Return what to ask NOMAD in turn until there are enough points: other seeds, then larger frames."""
    sizes = [frame.sizes[axis] for axis in axes]
    ladders = [ladder(problem.space.parameters[axis].levels - 1) for axis in axes]
    frames = [sizes] * min(4 + count // 4, 24)
    for _ in range(4):
        sizes = [
            steps[min(steps.index(size) + 1, len(steps) - 1)]
            for steps, size in zip(ladders, sizes, strict=True)
        ]
        frames.append(sizes)
    return [
        (problem.call_seed(f"nomad {k}", _SEEDS), [f"INITIAL_FRAME_SIZE ( {' '.join(map(str, sizes))} )"])
        for k, sizes in enumerate(frames)
    ]


def _solve(
    problem: Problem,
    center: Levels,
    shown: Sequence[Point],
    axes: Sequence[int],
    tries: Sequence[tuple[int, list[str]]],
    count: int,
) -> list[tuple[list[int], int]]:
    """Ask NOMAD in a process of its own; simpler and simpler if that process dies. Nothing if all do."""
    if not axes:
        return []
    fixed = [i for i in range(len(center)) if i not in axes]
    near = [p for p in shown if all(p.levels[i] == center[i] for i in fixed)]
    request = {
        "cache": _cache(problem, near, axes),
        "known": [
            [levels[i] for i in axes] for levels in problem.seen if all(levels[i] == center[i] for i in fixed)
        ],
        "tries": tries,
        "count": count,
        "cpu_seconds": _CPU_SECONDS,
        "memory_mib": _MEMORY_MIB,
    }
    for rung, simpler in enumerate(_FALLBACKS):
        answer = _run({**request, "parameters": _parameters(problem, near, axes, simpler)})
        if not isinstance(answer, str):
            return answer
        _LOG.warning("NOMAD failed", extra={"reason": answer, "rung": rung, "points": len(near)})
        if answer == _TOO_LATE:  # a simpler one would come later still
            break
    return []


def _run(request: Mapping[str, Any]) -> list[tuple[list[int], int]] | str:
    """Return the answer of a solver process, or why there is none."""
    with tempfile.TemporaryDirectory(prefix="retune-nomad-") as folder:
        Path(folder, "request.json").write_text(json.dumps(request))
        try:
            subprocess.run(
                [sys.executable, "-I", nomad_solver.__file__],
                cwd=folder,
                timeout=_WALL_SECONDS,
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"OMP_NUM_THREADS": "1", "PATH": os.defpath},
            )
            answer: list[tuple[list[int], int]] = json.loads(Path(folder, "answer.json").read_text())
        except subprocess.CalledProcessError as error:
            return f"it ended with {error.returncode}"
        except subprocess.TimeoutExpired:
            return _TOO_LATE
        except (OSError, ValueError) as error:
            return str(error)
    return answer


def _parameters(
    problem: Problem, near: Sequence[Point], axes: Sequence[int], simpler: Mapping[str, str]
) -> list[str]:
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
        **simpler,
    }
    violations = sorted(p.violation for p in near if p.outcome == "ok" and p.violation > 0)
    if violations:  # the barrier comes down as better infeasible points are found
        chosen["H_MAX_0"] = repr(violations[(len(violations) - 1) // 2] * 1.000001)
    return [f"{name} {value}" for name, value in chosen.items()]


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
        place = " ".join(f"{point.levels[axis]}.0" for axis in axes)
        numbers = [point.value, *point.excesses] if good else ["nan"] * (1 + problem.constraints)
        status = "BB_EVAL_OK" if good else "BB_EVAL_FAILED"
        lines.append(f"( {place} ) {status} ( {' '.join(map(str, numbers))} ) SURROGATE_EVAL_NOT_STARTED ( )")
    return "\n".join(lines) + "\n"
