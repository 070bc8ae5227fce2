"""The unit of the models: objective values with the bad half compressed.

The value of a bad point says little about where the good ones are. The median becomes 0, and a spread, the distance from the
median to the best value, becomes 1.
"""

from __future__ import annotations

import numpy as np

from retune.search.lattice import Floats

_LARGEST = 200.0  # in squashed units: exp of it is finite


def squashed(values: Floats, unit: float | None = None) -> Floats:
    """Return values in squashed units; `unit` takes the place of their own spread."""
    middle = np.median(values)
    spread = unit or spread_of(values)
    with np.errstate(over="ignore"):
        relative = np.minimum((values - middle) / spread, np.finfo(np.float64).max)
    return np.where(relative > 0, np.log1p(np.maximum(relative, 0)), relative)


def unsquashed(units: Floats, values: Floats, unit: float | None = None) -> Floats:
    """Return squashed units as values again, on the scale that `squashed(values, unit)` has."""
    relative = np.where(units > 0, np.expm1(np.minimum(units, _LARGEST)), units)
    with np.errstate(over="ignore"):
        restored: Floats = np.median(values) + (unit or spread_of(values)) * relative
    return restored


def spread_of(values: Floats) -> float:
    """Return how far the best value is from the median; 1 if all are equal."""
    return float(np.median(values) - values.min() or np.ptp(values) or 1.0)
