"""Krippendorff's alpha: agreement beyond chance, for any number of annotators and with missing values.

K. Krippendorff, "Computing Krippendorff's Alpha-Reliability", University of Pennsylvania, 2011, section C; the
examples printed there are in the tests. 1 is full agreement, 0 that of chance, below 0 is systematic disagreement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Distance = Callable[[int, int, Sequence[float]], float]


def nominal(one: int, other: int, totals: Sequence[float]) -> float:
    """Return 1 for different categories."""
    return float(one != other)


def ordinal(one: int, other: int, totals: Sequence[float]) -> float:
    """Return the squared number of values between two categories, counting half of each of the two.

    Args:
        totals: how many values each category has; categories are in order.
    """
    low, high = sorted((one, other))
    return float((sum(totals[low : high + 1]) - (totals[low] + totals[high]) / 2) ** 2)


def krippendorff_alpha(counts: Sequence[Sequence[int]], distance: Distance = nominal) -> float | None:
    """Return alpha, or None where it is not defined: nothing was judged twice, or all judged the same.

    Args:
        counts: for each unit, how many people put it into each category; same categories for every unit.
        distance: how far two categories are apart.
    """
    pairable = [unit for unit in counts if sum(unit) > 1]
    if not pairable:
        return None
    categories = range(len(pairable[0]))
    coincidence = [[0.0 for _ in categories] for _ in categories]
    for unit in pairable:
        for c in categories:
            for k in categories:
                coincidence[c][k] += unit[c] * (unit[k] - (c == k)) / (sum(unit) - 1)
    totals = [sum(row) for row in coincidence]
    n = sum(totals)
    distances = [[distance(c, k, totals) for k in categories] for c in categories]
    observed = sum(coincidence[c][k] * distances[c][k] for c in categories for k in categories) / n
    expected = sum(totals[c] * totals[k] * distances[c][k] for c in categories for k in categories) / (
        n * (n - 1)
    )
    return 1 - observed / expected if expected > 0 else None
