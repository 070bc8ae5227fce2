"""Uniform random search (Bergstra and Bengio, 2012): the yardstick for the others."""

from __future__ import annotations

from retune.search import design
from retune.search.problem import Candidate, Problem
from retune.search.settings import Settings


class RandomSettings(Settings):
    """Settings of `random`."""


def propose(problem: Problem, count: int) -> list[Candidate]:
    """Return unseen points, uniform on the scale of each parameter; nothing of the results is used."""
    return [
        Candidate(levels, "random") for levels in design.unseen(problem, (), count, problem.rng("random"))
    ]
