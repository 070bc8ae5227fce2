"""A multi-fidelity model of the objective: the share of the training done is one more dimension.

The Gaussian process is over setting and share of the whole training (Kandasamy et al. 2017, section 3, with the same kernel as
over the settings). It is fitted to each trial's loss at each of its rungs and predicts the loss at the end of the training.
The length scale along the share is fitted with the others, so the data decide how much a loss at a rung says about the last
one. Losses fall during training, for nearly all settings alike: this common decrease is subtracted first, as the median at
each rung of how far the loss was above the trial's next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from retune.search.gaussian import Gaussian, fit
from retune.search.lattice import Floats, Lattice
from retune.search.problem import Point
from retune.search.squashing import squashed


class MultiFidelityModel:
    """The model at the end of the training; the interface of `Gaussian`.

    Args:
        model: over setting and share, the last column.

    """

    def __init__(self, model: Gaussian) -> None:
        self._model = model

    @classmethod
    def of(cls, lattice: Lattice, points: Sequence[Point]) -> MultiFidelityModel:
        """Return the model of points with a value, in squashed units (`retune.search.squashing`)."""
        curves = [_curve(point) for point in points]
        drops = _course(curves)
        rows = [
            (point.levels, share, value - drops.get(share, 0.0))
            for point, curve in zip(points, curves, strict=True)
            for share, value in curve
        ]
        levels, shares, values = (list(column) for column in zip(*rows, strict=True))
        inputs = _with_share(lattice.features(levels), np.array(shares))
        groups = np.append(lattice.groups, lattice.groups.max(initial=-1) + 1)
        return cls(fit(inputs, squashed(np.array(values)), groups))

    @property
    def noise(self) -> float:
        """The standard deviation of a measurement."""
        return self._model.noise

    def loo_log_density(self) -> float:
        """Return the log density of the results, each predicted from all others."""
        return self._model.loo_log_density()

    def predict(self, inputs: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation after the whole training at `inputs`, each of shape (m,)."""
        return self._model.predict(_with_share(inputs, np.ones(len(inputs))))

    def condition_on(self, inputs: Floats, values: Floats) -> MultiFidelityModel:
        """Return the model with further whole trainings, the hyper-parameters kept."""
        return MultiFidelityModel(self._model.condition_on(_with_share(inputs, np.ones(len(inputs))), values))


def _curve(point: Point) -> list[tuple[float, float]]:
    """Return the losses of a trial at its rungs and, if it was not stopped, at its end."""
    return [*sorted(point.rungs), *([(1.0, point.value)] if point.whole else [])]


def _course(curves: Sequence[Sequence[tuple[float, float]]]) -> dict[float, float]:
    """Return how far the loss at each share typically is above that at the end."""
    steps: dict[tuple[float, float], list[float]] = {}
    for curve in curves:
        for (share, value), (further, later) in pairwise(curve):
            steps.setdefault((share, further), []).append(value - later)
    above = {1.0: 0.0}
    for share in sorted({share for curve in curves for share, _ in curve}, reverse=True):
        onward = [
            (further, losses)
            for (begin, further), losses in steps.items()
            if begin == share and further in above
        ]
        if onward:
            further, losses = max(onward, key=lambda entry: len(entry[1]))
            above[share] = above[further] + float(np.median(losses))
    return above


def _with_share(inputs: Floats, shares: Floats) -> Floats:
    return np.hstack([inputs, shares[:, None]])
