"""`language-bo`: expected improvement over candidate settings, by a deep kernel on a language model's embeddings.

Every setting is written out as text (`prompt`) and embedded by a frozen model (`embedding`); a projection and a learnable
token are trained with a Gaussian process (`kernel`). The next settings are the candidates with the highest expected
improvement. In a batch, each chosen or running setting counts as measured at its predicted mean (the "kriging believer" of
Ginsbourger et al. 2010). Candidates are a random sample of the space, the same at each call of a study, and the
neighbours of the best settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from retune.errors import InputError
from retune.language.prompt import opening, written
from retune.search import Settings, design
from retune.search.problem import Candidate, Levels, Problem, hashed
from retune.search.soo import penalised
from retune.search.squashing import squashed

if TYPE_CHECKING:
    import torch

    from retune.language.kernel import Kernel

_MAX_RESULTS = 150  # in the model, the best ones
_LEADERS = 4  # best settings whose neighbours are candidates
_BATCH = 64  # texts embedded at a time


class LanguageSettings(Settings):
    """Settings of `language-bo`."""

    model: str | None = Field(
        None,
        description="frozen model that embeds: a folder, an s3:// address or a hub name; the study's base",
    )
    revision: str | None = Field(None, description="of `model`, where it has a hub name")
    LH_SEARCH: int = Field(8, ge=0, le=1000, description="Latin-hypercube points after the default setting")
    candidates: int = Field(256, ge=8, le=4096, description="settings that expected improvement looks at")
    projection: int = Field(4, ge=0, le=64, description="dimensions of the projection; 0: none, an ablation")
    token: bool = Field(True, description="a learnable token behind each text; false is an ablation")


def propose(problem: Problem, count: int) -> list[Candidate]:
    """Return points of the initial design first, then the candidates with the highest expected improvement.

    Raises:
        InputError: if no model is given.

    """
    settings = problem.settings
    assert isinstance(settings, LanguageSettings)
    initial = design.start(problem, settings.LH_SEARCH)
    proposals = [point for point in initial if point.levels not in problem.seen][:count]
    if len(proposals) == count or len(problem.ok) < 2:
        return proposals
    excluded = set(problem.seen) | {point.levels for point in proposals}
    pool = [levels for levels in _pool(problem, settings) if levels not in excluded]
    return proposals + (_improving(problem, settings, pool, count - len(proposals)) if pool else [])


def _pool(problem: Problem, settings: LanguageSettings) -> list[Levels]:
    """Return the candidates: a sample of the space, the same at each call, and the neighbours of the best points."""
    dimension = len(problem.space.parameters)
    rng = np.random.default_rng(hashed(problem.seed, "language candidates"))
    places = rng.random((settings.candidates, dimension))
    candidates = [problem.snap(problem.space.from_unit(row.tolist())) for row in places]
    for point in sorted(problem.ok, key=lambda p: (p.merit, p.levels))[:_LEADERS]:
        for axis, parameter in enumerate(problem.space.parameters):
            # A geometric series reaches far on a fine grid; from a category all others are neighbours
            steps = (1, 3, 10, 30) if parameter.ordered else range(1, parameter.levels)
            for step in steps:
                for sign in (1, -1):
                    level = min(max(point.levels[axis] + sign * step, 0), parameter.levels - 1)
                    candidates.append(problem.snap((*point.levels[:axis], level, *point.levels[axis + 1 :])))
    return list(dict.fromkeys(candidates))


def _improving(
    problem: Problem, settings: LanguageSettings, pool: Sequence[Levels], count: int
) -> list[Candidate]:
    import torch

    from retune.language import kernel
    from retune.language.embedding import Reading, embedder

    if settings.model is None:
        raise InputError(
            "`language-bo` needs `search.settings.model`, the frozen model that reads the settings", "search"
        )
    model = embedder(settings.model, settings.revision)
    scores = penalised(problem)
    known = sorted(scores, key=lambda levels: (scores[levels], levels))[:_MAX_RESULTS]
    values = torch.tensor(squashed(np.array([scores[levels] for levels in known])))
    values = (values - values.mean()) / values.std().clamp(min=1e-9)

    def read(points: Sequence[Levels]) -> Reading:
        texts = [written(problem.space, problem.space.decode(levels)) for levels in points]
        return model.read(opening(problem.space), texts)

    measured = read(known)

    def features(reading: Reading, token: torch.Tensor | None) -> torch.Tensor:
        return reading.means if token is None else torch.cat([reading.means, reading.behind(token)], dim=1)

    token = model.start() if settings.token else None
    seed = hashed(problem.seed, "projection") % 2**31
    fitted = kernel.fit(
        lambda token: features(measured, token), values, token, settings.projection or None, seed
    )

    def place(points: Sequence[Levels]) -> torch.Tensor:
        parts = [points[k : k + _BATCH] for k in range(0, len(points), _BATCH)]
        return torch.cat([fitted.project(features(read(part), fitted.token)) for part in parts])

    with torch.no_grad():
        running = [point.levels for point in problem.running]
        places = place([*pool, *running])
        for row in places[len(pool) :]:
            fitted = fitted.condition_on(row, fitted.predict(row[None])[0][0])
        return _best(fitted, pool, places[: len(pool)], count)


def _best(fitted: Kernel, pool: Sequence[Levels], places: torch.Tensor, count: int) -> list[Candidate]:
    """Return the candidates with the highest expected improvement (Jones et al. 1998), chosen one after another."""
    import torch

    chosen: list[Candidate] = []
    free = torch.ones(len(pool), dtype=torch.bool)
    best = fitted.predict(fitted.inputs)[0].min()  # of the predicted means: measured values are noisy
    for _ in range(min(count, len(pool))):
        mean, deviation = fitted.predict(places)
        z = (best - mean) / deviation
        density = (-0.5 * z**2).exp() / math.sqrt(2 * math.pi)
        improvement = deviation * (z * torch.special.ndtr(z) + density)
        index = int(torch.where(free, improvement, -1.0).argmax())
        free[index] = False
        chosen.append(Candidate(pool[index], "search: expected improvement in the language model's view"))
        fitted = fitted.condition_on(places[index], mean[index])
    return chosen
