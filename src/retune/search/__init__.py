"""Search algorithms as pure functions: a history goes in, the next points come out.

The same arguments give the same answer in any process; the order of the history does not matter; the answer
always holds exactly the asked number of points, on the grid of the space, all different from each other and
from the history while the space has unseen points. Nothing is remembered between calls, so a restart changes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from retune.errors import InputError
from retune.search import bamsoo, design, gp, lhs, mads_global, nomad, random, soo, tpe
from retune.search.problem import Candidate, Levels, Objective, Observation, Problem, Proposal, pose
from retune.search.settings import Settings, problems
from retune.space import Assignment, Space

__all__ = [
    "ALGORITHMS",
    "ALIASES",
    "Algorithm",
    "Objective",
    "Observation",
    "Proposal",
    "explain",
    "suggest",
    "validate",
]


@dataclass(frozen=True)
class Algorithm:
    """One algorithm: its settings, and the function that proposes points.

    `propose` may return fewer points than asked, or seen ones; what lacks is filled with random unseen
    points.
    """

    settings: type[Settings]
    propose: Callable[[Problem, int], list[Candidate]]
    summary: str


ALGORITHMS: dict[str, Algorithm] = {
    "nomad": Algorithm(nomad.NomadSettings, nomad.propose, "mesh adaptive direct search by NOMAD 4"),
    "mads-global": Algorithm(
        mads_global.MadsGlobalSettings, mads_global.propose, "MADS with a global model-based search step"
    ),
    "gp": Algorithm(gp.GpSettings, gp.propose, "Bayesian optimisation with a Gaussian process"),
    "lhs": Algorithm(lhs.LhsSettings, lhs.propose, "Latin-hypercube sampling"),
    "soo": Algorithm(soo.SooSettings, soo.propose, "simultaneous optimistic optimisation"),
    "bamsoo": Algorithm(bamsoo.BamsooSettings, bamsoo.propose, "SOO that a Gaussian process saves trials"),
    "tpe": Algorithm(tpe.TpeSettings, tpe.propose, "tree-structured Parzen estimator by Optuna"),
    "random": Algorithm(random.RandomSettings, random.propose, "uniform random points"),
}

ALIASES = {"retune-tpe": "tpe", "retune-random": "random"}
"""Names that mean ours everywhere: under Katib `tpe` and `random` are Katib's own services."""


def validate(algorithm: str, space: Space, settings: Mapping[str, Any]) -> list[str]:
    """Return all that is wrong with the settings of an algorithm; nothing if it can run."""
    algorithm = ALIASES.get(algorithm, algorithm)
    if algorithm not in ALGORITHMS:
        return [f"unknown algorithm {algorithm!r}; there are {sorted(ALGORITHMS)}"]
    return problems(ALGORITHMS[algorithm].settings, settings)


def suggest(
    algorithm: str,
    space: Space,
    objective: Objective,
    settings: Mapping[str, Any],
    history: Iterable[Observation],
    count: int,
    seed: int,
    issued: int | None = None,
) -> list[Assignment]:
    """Return the next `count` assignments to try.

    `history` holds all that is known, in any order: completed, failed, running and early-stopped trials.
    `seed` is the study's; `settings["seed"]` goes before it. `issued` is how many points were asked for
    before, by default the number of this study's observations.

    Raises:
        InputError: for an unknown algorithm or bad settings, with every problem.
    """
    proposals = explain(algorithm, space, objective, settings, history, count, seed, issued)
    return [proposal.assignment for proposal in proposals]


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
    """Like `suggest`, and say of each point where it came from."""
    found = validate(algorithm, space, settings)
    if found:
        raise InputError(found, "search.settings")
    if count < 1:
        raise InputError(f"`count >= 1` must hold, but got {count}", "search")
    chosen = ALGORITHMS[ALIASES.get(algorithm, algorithm)]
    parsed = chosen.settings.model_validate(dict(settings))
    problem = pose(
        space, objective, parsed, history, parsed.seed if parsed.seed is not None else seed, issued
    )
    candidates = _complete(problem, chosen.propose(problem, count), count)
    return [Proposal(space.decode(levels), origin) for levels, origin in candidates]


def _complete(problem: Problem, proposed: Iterable[Candidate], count: int) -> list[Candidate]:
    """Return exactly `count` points: the proposed unseen ones, then random unseen ones, then repeats."""
    taken: dict[Levels, str] = {}
    for levels, origin in proposed:
        snapped = problem.snap(levels)
        if snapped not in problem.seen and len(taken) < count:
            taken.setdefault(snapped, origin)
    if len(taken) < count:
        for levels in design.unseen(problem, taken, count - len(taken), problem.rng("fill")):
            taken[levels] = "random fill"
    complete = [Candidate(levels, origin) for levels, origin in taken.items()]
    if len(complete) < count:
        again = design.repeats(problem, taken, count - len(complete))
        complete += [Candidate(levels, "repeat: the space is exhausted") for levels in again]
    return complete
