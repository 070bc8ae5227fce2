"""Bayesian multi-scale optimistic optimisation (Wang et al. 2014), as Algorithm 3.4 of Davouse (2024).

SOO, with a Gaussian process that saves trials: a centre whose confidence bound cannot beat the best value is not
measured; its cell gets the pessimistic bound as its score.
"""

from __future__ import annotations

import math

import numpy as np
from pydantic import Field

from retune.search.gaussian import fit
from retune.search.lattice import Lattice
from retune.search.problem import Candidate, Levels, Problem
from retune.search.soo import SooSettings, grow, penalised
from retune.search.squashing import squashed

_MODELLED = 2000  # points in the model at most: its memory grows with the square
_BOUNDED = 2000  # centres that the model may rule out in a call: a tree of those alone would grow for ever


class BamsooSettings(SooSettings):
    """Settings of `bamsoo`."""

    eta: float = Field(
        0.1, gt=0, lt=1, description="how sure the bound must be; a larger one saves more trials"
    )


def propose(problem: Problem, count: int) -> list[Candidate]:
    """Return the default setting first, then the centres that could be better than the best."""
    settings = problem.settings
    assert isinstance(settings, BamsooSettings)
    known = penalised(problem)
    if len(problem.ok) < 3:
        return grow(problem, count, lambda levels, _: known.get(levels))
    lattice = Lattice(problem.space)
    # Keeps the order
    known = dict(zip(known, squashed(np.array(list(known.values()))).tolist(), strict=True))
    best = min(known.values())
    ranked = sorted(known, key=lambda levels: (known[levels], levels))
    points = sorted(ranked[:: -(-len(ranked) // _MODELLED)])  # good and bad alike, and the best one
    model = fit(lattice.features(points), np.array([known[levels] for levels in points]), lattice.groups)
    bounds: dict[Levels, tuple[float, float]] = {}

    def score(levels: Levels, number: int) -> float | None:
        if levels in known:
            return known[levels]
        if levels not in bounds and len(bounds) == _BOUNDED:
            return None
        if levels not in bounds:
            mean, deviation = model.predict(lattice.features([levels]))
            bounds[levels] = float(mean[0]), float(deviation[0])
        middle, spread = bounds[levels]
        reach = math.sqrt(2 * math.log(math.pi**2 * number**2 / (6 * settings.eta))) * spread
        return None if middle - reach <= best else middle + reach

    return grow(problem, count, score)
