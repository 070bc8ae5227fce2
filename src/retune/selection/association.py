"""Rank correlation of the objective with a benchmark score: does a better objective mean better answers?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations
from statistics import NormalDist

from pydantic import BaseModel

MIN_MODELS = 3
PERMUTATIONS = 10_000
_LEVEL = 0.95
_MAX_EXACT = 7  # up to so many models all orders are tried: 7! = 5,040


class Association(BaseModel):
    """Rank correlation of objective and score over `n` models.

    Attributes:
        spearman: Spearman's coefficient, with low and high: its 95 % interval (None below 4 models).
        kendall: Kendall's tau-b.
        spearman_p, kendall_p: two-sided p-values of no association.

    """

    n: int
    spearman: float
    low: float | None = None
    high: float | None = None
    spearman_p: float
    kendall: float
    kendall_p: float


def associate(objectives: Sequence[float], scores: Sequence[float], seed: int = 0) -> Association | None:
    """Return the rank correlation; None below three models, or where all have one value.

    The interval is that of Bonett and Wright (2000, Psychometrika 65): Fisher's z with the variance
    (1 + r² / 2) / (n - 3). Spearman's p-value is that of a permutation test, over all orders of up to 7 models and over
    10,000 random ones of more; Kendall's is SciPy's (exact without ties).
    """
    if len(objectives) < MIN_MODELS or len(set(objectives)) < 2 or len(set(scores)) < 2:
        return None
    from scipy.stats import kendalltau, spearmanr

    n = len(objectives)
    rho, tau = float(spearmanr(objectives, scores).statistic), kendalltau(objectives, scores)
    low, high = _interval(rho, n) if n > MIN_MODELS else (None, None)
    return Association(
        n=n,
        spearman=rho,
        low=low,
        high=high,
        spearman_p=_permutation_p(objectives, scores, seed),
        kendall=float(tau.statistic),
        kendall_p=float(tau.pvalue),
    )


def _interval(rho: float, n: int) -> tuple[float, float]:
    inside = max(-1 + 1e-12, min(1 - 1e-12, rho))  # atanh is infinite at 1
    half = NormalDist().inv_cdf((1 + _LEVEL) / 2) * math.sqrt((1 + rho * rho / 2) / (n - 3))
    return math.tanh(math.atanh(inside) - half), math.tanh(math.atanh(inside) + half)


def _permutation_p(objectives: Sequence[float], scores: Sequence[float], seed: int) -> float:
    """Return the share of orders of the scores whose correlation is at least as strong as the observed one."""
    import numpy as np
    from scipy.stats import rankdata

    # All orders have the same mean and variance, so the dot product of the centred ranks orders them as Spearman's rho
    first, second = (rankdata(values) - (len(scores) + 1) / 2 for values in (objectives, scores))
    if len(scores) <= _MAX_EXACT:
        orders, observed = np.array(list(permutations(second))), 0
    else:
        rng = np.random.default_rng(seed)
        # The observed order counts as one of the random ones, so that p is never 0 (Phipson and Smyth 2010)
        orders, observed = rng.permuted(np.tile(second, (PERMUTATIONS, 1)), axis=1), 1
    strength = np.abs(orders @ first)
    as_strong = int((strength >= abs(float(second @ first)) - 1e-9).sum())
    return (as_strong + observed) / (len(orders) + observed)
