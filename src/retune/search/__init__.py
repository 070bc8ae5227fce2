"""Search algorithms as pure functions: a history goes in, the next points come out.

The same arguments give the same answer in any process, whatever the order of the history. The answer holds exactly
the requested number of points, on the grid of the space, different from each other and from the history as long as
the space has unseen points. No state is kept between calls, so a restart changes nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ParamSpec

from retune import extensions
from retune.errors import InputError
from retune.search import bamsoo, design, gp, lhs, mads_global, nomad, random, soo, tpe
from retune.search.linear_algebra import one_thread
from retune.search.problem import (
    FALLBACK,
    SAME,
    Candidate,
    Levels,
    Objective,
    Observation,
    Problem,
    Proposal,
    pose,
)
from retune.search.settings import Settings, problems
from retune.space import Assignment, Space

__all__ = [
    "ALGORITHMS",
    "ALIASES",
    "FALLBACK",
    "MOST_OBJECTIVES",
    "SAME",
    "SEPARATE_PACKAGES",
    "Algorithm",
    "Candidate",
    "Objective",
    "Observation",
    "Problem",
    "Proposal",
    "Settings",
    "algorithm_names",
    "explain",
    "find",
    "fitting",
    "suggest",
    "validate",
]


P = ParamSpec("P")
MOST_OBJECTIVES = 3


@dataclass(frozen=True)
class Algorithm:
    """One algorithm: its settings, and the function that proposes points.

    `propose` may return fewer points than requested, or seen ones; random unseen points replace them. `several`:
    whether it can improve two or three objectives at once. `conditions`: whether it can search a space with
    conditional parameters.
    """

    settings: type[Settings]
    propose: Callable[[Problem, int], list[Candidate]]
    summary: str
    several: bool = False
    conditions: bool = True


ALGORITHMS: dict[str, Algorithm] = {
    "nomad": Algorithm(
        nomad.NomadSettings, nomad.propose, "mesh adaptive direct search by NOMAD 4", several=True
    ),
    "mads-global": Algorithm(
        mads_global.MadsGlobalSettings, mads_global.propose, "MADS with a global model-based search step"
    ),
    "gp": Algorithm(gp.GpSettings, gp.propose, "Bayesian optimisation with a Gaussian process"),
    "lhs": Algorithm(lhs.LhsSettings, lhs.propose, "Latin-hypercube sampling", several=True),
    "soo": Algorithm(soo.SooSettings, soo.propose, "simultaneous optimistic optimisation", conditions=False),
    "bamsoo": Algorithm(
        bamsoo.BamsooSettings, bamsoo.propose, "SOO that a Gaussian process saves trials", conditions=False
    ),
    "tpe": Algorithm(tpe.TpeSettings, tpe.propose, "tree-structured Parzen estimator by Optuna"),
    "random": Algorithm(random.RandomSettings, random.propose, "uniform random points", several=True),
}

SEPARATE_PACKAGES = {"language-bo": "retune.language"}
"""Algorithms that need packages which `search` must not import (torch), and the package that defines each as `ALGORITHM`."""

ALIASES = {"retune-tpe": "tpe", "retune-random": "random"}
"""Names of ours that Katib does not have: with Katib, `tpe` and `random` are Katib's own services."""


def algorithm_names() -> list[str]:
    """Return the names of retune's own algorithms and of those that installed packages add."""
    return sorted({*ALGORITHMS, *SEPARATE_PACKAGES, *extensions.names("algorithms")})


def find(name: str) -> Algorithm:
    """Return the algorithm of a name, retune's own or an installed package's.

    Raises:
        InputError: if there is none, or its package cannot be imported.
    """
    name = ALIASES.get(name, name)
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    if name in SEPARATE_PACKAGES:
        separate: Algorithm = importlib.import_module(SEPARATE_PACKAGES[name]).ALGORITHM
        return separate
    if name not in extensions.names("algorithms"):
        raise InputError(f"unknown algorithm {name!r}; there are {algorithm_names()}", "search")
    algorithm = extensions.load("algorithms", name)
    if not isinstance(algorithm, Algorithm):
        raise InputError(
            f"{name!r} must be a retune.search.Algorithm, but is {algorithm!r}", "retune.algorithms"
        )
    return algorithm


def fitting(
    space: Space, objective: Objective | None = None, here: bool = True, katib: bool = False
) -> list[str]:
    """Return the algorithms that can search a space for an objective: those to advise where another cannot.

    Args:
        space, objective: what is searched, and what for.
        here: whether they run on this machine, which must then have the packages that they need.
        katib: whether to give the names that are ours under Katib too, where `tpe` and `random` are Katib's own.

    """
    as_katibs = {own: alias for alias, own in ALIASES.items()} if katib else {}
    names = []
    for name in algorithm_names():
        if katib and name in SEPARATE_PACKAGES:  # the suggestion image has no torch
            continue
        with contextlib.suppress(InputError):  # a broken package of others has nothing to advise
            if not _unable(name, find(name), space, objective, here):
                names.append(as_katibs.get(name, name))
    return names


def _unable(
    name: str, algorithm: Algorithm, space: Space, objective: Objective | None, here: bool
) -> list[str]:
    """Return why an algorithm cannot search a space for an objective, without the remedy."""
    reasons = []
    if here and name == "nomad" and find_spec("PyNomad") is None:
        reasons.append(
            f"`nomad` needs the package PyNomadBBO, which is not installed on this {platform.machine()} machine "
            "(it has no wheel for arm64 Linux)"
        )
    if here and name in SEPARATE_PACKAGES and find_spec("torch") is None:
        reasons.append(f"`{name}` needs the package torch, which is not installed here")
    if objective and objective.further and not algorithm.several:
        reasons.append(f"`{name}` optimises one metric, but got {[goal.metric for goal in objective.goals]}")
    depending = [p.name for p in space.parameters if p.when]
    if depending and not algorithm.conditions:
        reasons.append(
            f"`{name}` cuts the space along every parameter and takes none with `when`, but got {depending}"
        )
    return reasons


def validate(
    algorithm: str,
    space: Space,
    settings: Mapping[str, Any],
    objective: Objective | None = None,
    here: bool = True,
    katib: bool = False,
) -> list[str]:
    """Return every problem with the settings and the objective of an algorithm; none if it can run.

    Args:
        algorithm: its name.
        space: what is searched.
        settings: the algorithm's own.
        objective: what is improved.
        here, katib: as `fitting` has them, whose algorithms are advised.

    """
    try:
        chosen = find(algorithm)
    except InputError as error:
        return error.problems
    refused = problems(chosen.settings, settings)
    if unable := _unable(algorithm, chosen, space, objective, here):
        able = fitting(space, objective, here, katib)
        refused += [f"{text}: use one of {able}" for text in unable]
    goals = [goal.metric for goal in objective.goals] if objective else []
    if len(goals) > MOST_OBJECTIVES or len(set(goals)) < len(goals):
        refused.append(f"at most {MOST_OBJECTIVES} different metrics can be objectives, but got {goals}")
    return refused


def explain(
    algorithm: str,
    space: Space,
    objective: Objective,
    settings: Mapping[str, Any],
    history: Iterable[Observation],
    count: int,
    seed: int,
    issued: int | None = None,
) -> list[Proposal]:
    """Return the next `count` points to try, and where each comes from.

    `history` holds all known trials in any order: completed, failed, running and early-stopped ones.
    `seed` is the study's; `settings["seed"]` overrides it. `issued` is the number of points requested
    before, by default the number of this study's observations.

    Raises:
        InputError: for an unknown algorithm or bad settings, with every problem.
    """
    reasons = validate(algorithm, space, settings, objective)
    if count < 1:
        reasons.append(f"`count >= 1` must hold, but got {count}")
    if reasons:
        raise InputError(reasons, "search")
    chosen = find(algorithm)
    parsed = chosen.settings.model_validate(dict(settings))
    own = parsed.own_seed()
    with one_thread():
        problem = pose(space, objective, parsed, history, seed if own is None else own, issued)
        if any(point.outcome == "ok" for point in problem.earlier) and not parsed.as_measured:
            from retune.search.transfer import adapted

            problem = adapted(problem)
        candidates = _complete(problem, chosen.propose(problem, count), count)
    return [Proposal(space.decode(levels), origin) for levels, origin in candidates]


def _assignments_only(explained: Callable[P, list[Proposal]]) -> Callable[P, list[Assignment]]:
    def suggest(*args: P.args, **kwargs: P.kwargs) -> list[Assignment]:
        """Like `explain`, without where the points come from."""
        return [proposal.assignment for proposal in explained(*args, **kwargs)]

    return suggest


suggest = _assignments_only(explain)


def _complete(problem: Problem, proposed: Iterable[Candidate], count: int) -> list[Candidate]:
    """Return exactly `count` points: the proposed unseen ones, then random unseen ones, then repeats."""
    sources: dict[Levels, str] = {}
    for levels, origin in proposed:
        snapped = problem.snap(levels)
        if snapped not in problem.seen and len(sources) < count:
            sources.setdefault(snapped, origin)
    if len(sources) < count:
        for levels in design.unseen(problem, sources, count - len(sources), problem.rng("fill")):
            sources[levels] = "random fill"
    complete = [Candidate(levels, origin) for levels, origin in sources.items()]
    if len(complete) < count:
        again = design.repeats(problem, sources, count - len(complete))
        complete += [Candidate(levels, "repeat: the space is exhausted") for levels in again]
    return complete
