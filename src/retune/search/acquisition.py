"""The acquisition function: expected improvement, with failures and constraints.

The value of a point is its augmented expected improvement (Huang et al. 2006) times the probability that the trial does
not fail (a process on the outcomes) and that it keeps each constraint (Gardner et al. 2014). Augmented: less where the
model is surer than one more measurement could make it. Plain expected improvement measures the best place again and
again when measurements are noisy. Points under way count with their expected value (Ginsbourger et al. 2010), so that a
batch spreads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy

from retune.search import transfer
from retune.search.gaussian import Gaussian, fit
from retune.search.lattice import Floats, Ints, Lattice
from retune.search.problem import Candidate, Levels, Problem

_MODELLED = 400  # points in a model at most: the best ones
_RANDOM, _NEAR = 1000, 1000
_KEPT = 500
_CLIMBS = 16  # points of a batch that are improved step by step
_STEPS = (1, 2, 5, 10, 20, 50)
_MANY = 200  # steps along all parameters together; about 16 parameters have as many


class Acquisition:
    """The models of one history, and the points where the acquisition function is highest.

    Call `best` several times for a batch: each point taken counts as measured at its expected value.
    `uses_earlier_studies`: whether earlier studies predict this one's results; None while there are too few results.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.lattice = Lattice(problem.space)
        ok = sorted(problem.ok, key=lambda point: point.merit)[:_MODELLED]
        inputs = self.lattice.features([point.levels for point in ok])
        self._objective = transfer.objective_model(problem, self.lattice)
        self.uses_earlier_studies = transfer.uses_earlier_studies(problem, self._objective)
        self._constraints = [
            fit(inputs, _signed_log(np.array([point.excesses[k] for point in ok])), self.lattice.groups)
            for k in range(problem.constraints)
        ]
        self._survival = self._survives([point.levels for point in ok])
        feasible = np.array([point.violation == 0 for point in ok])
        self._feasible = inputs[feasible]
        self._pool = np.zeros((0, len(self.lattice.tops)), dtype=np.int64)
        self._climbs = _CLIMBS
        self._impute([point.levels for point in problem.running])

    # A regression on labels +1 and -1 instead of a classifier: one solve, and good enough to steer away from failures.
    def _survives(self, ok: Sequence[Levels]) -> Gaussian | None:
        failed = [point.levels for point in self._problem.failed][-_MODELLED:]
        if not failed:
            return None
        labels = np.array([1.0] * len(ok) + [-1.0] * len(failed))
        return fit(self.lattice.features([*ok, *failed]), labels, self.lattice.groups)

    # The "kriging believer" of Ginsbourger et al.: without it, all points of a batch would be next to each other.
    def _impute(self, levels: Sequence[Levels]) -> None:
        if levels:
            inputs = self.lattice.features(levels)
            self._objective = self._objective.condition_on(inputs, self._objective.predict(inputs)[0])
        if len(self._feasible):
            self._target = self._effective_best()

    def value(self, levels: Ints) -> Floats:
        """Return the logarithm of the acquisition at `levels`, shape (m, d)."""
        inputs = self.lattice.features(levels)
        total = np.zeros(len(inputs))
        if len(self._feasible):
            mean, deviation = self._objective.predict(inputs)
            total += _log_improvement((self._target - mean) / deviation) + np.log(deviation)
            total += _log_information(deviation, self._objective.noise)
        for constraint in self._constraints:
            mean, deviation = constraint.predict(inputs)
            total += scipy.special.log_ndtr(-mean / deviation)
        if self._survival is not None:
            mean, deviation = self._survival.predict(inputs)
            total += scipy.special.log_ndtr(mean / np.sqrt(0.25 + deviation**2))
        return total

    def _effective_best(self) -> float:
        """Return the expected objective at the best point with some certainty, the effective best of Huang et al. (2006)."""
        mean, deviation = self._objective.predict(self._feasible)
        return float(mean[np.argmin(mean + deviation)])

    def mean(self, levels: Sequence[Levels]) -> Floats:
        """Return the expected (squashed) objective at `levels`."""
        return self._objective.predict(self.lattice.features(levels))[0]

    def best(self, taken: set[Levels], rng: np.random.Generator) -> Levels | None:
        """Return the point outside `taken` with the highest acquisition, and count it as measured at its expected value."""
        pool = self._pool if len(self._pool) else self._draw(rng)
        values = self.value(pool)
        order = np.argsort(-values, kind="stable")
        self._pool = pool[order[:_KEPT]]  # the first draw is good enough for the whole batch
        climbed: Sequence[Ints] = ()
        if self._climbs > 0:
            self._climbs -= 1
            climbed = list(climb(self.lattice, self.value, pool[order[:1]], values[order[:1]]))
        for row in (*climbed, *pool[order]):
            levels = self._problem.snap(row.tolist())
            if levels not in taken:
                self._impute([levels])
                return levels
        return None

    def ranked(self, candidates: Sequence[Candidate], taken: set[Levels]) -> Candidate | None:
        """Return the candidate outside `taken` with the highest acquisition, and count it as measured at its expected value."""
        free = [candidate for candidate in candidates if candidate.levels not in taken]
        if not free:
            return None
        values = self.value(np.array([candidate.levels for candidate in free]))
        chosen = free[int(values.argmax())]
        self._impute([chosen.levels])
        return chosen

    def _draw(self, rng: np.random.Generator) -> Ints:
        """Return random points, and points near the best ones at several distances, shape (m, d)."""
        dimension = len(self.lattice.tops)
        leaders = sorted(self._problem.ok, key=lambda point: point.merit)[:5]
        centers = self.lattice.positions([point.levels for point in leaders])
        near = centers[rng.integers(len(centers), size=_NEAR)]
        moved = rng.random((_NEAR, dimension)) < rng.choice([0.3, 0.6, 1.0], size=(_NEAR, 1))
        reach = rng.choice([0.01, 0.03, 0.1, 0.3], size=(_NEAR, 1))
        near = near + moved * np.where(
            self.lattice.ordered,
            reach * rng.standard_normal((_NEAR, dimension)),
            rng.random((_NEAR, dimension)) - near,
        )
        positions = np.vstack([rng.random((_RANDOM, dimension)), np.clip(near, 0, 1)])
        return np.unique(self.lattice.levels(positions), axis=0)


def climb(
    lattice: Lattice, value: Callable[[Ints], Floats], rows: Ints, values: Floats, rounds: int = 20
) -> Ints:
    """Improve each of `rows` by steps along single parameters; return them, best first."""
    moves = []
    for axis, (top, ordered) in enumerate(zip(lattice.tops, lattice.ordered, strict=True)):
        steps = [s for s in _STEPS if s <= top] if ordered else list(range(1, int(top) + 1))
        for step in steps:
            for sign in (1, -1):
                move = np.zeros(len(lattice.tops), dtype=np.int64)
                move[axis] = sign * step
                moves.append(move)
    if not moves:
        return rows
    rows, values, every = rows.copy(), values.copy(), np.array(moves)
    rising, tried = np.arange(len(rows)), every
    for _ in range(rounds):
        around = np.clip(rows[rising, None, :] + tried[None], 0, lattice.tops)
        nearby = value(around.reshape(-1, around.shape[-1])).reshape(len(rising), -1)
        each, best = np.arange(len(rising)), nearby.argmax(axis=1)
        helped = nearby > values[rising, None] + 1e-9
        better = helped[each, best]
        rows[rising[better]] = around[each, best][better]
        values[rising[better]] = nearby[each, best][better]
        if len(tried) == len(every):
            rising = rising[better]  # for the others no step helps
        if not len(rising):
            break
        # Of many steps only those that helped are tried again, until none of them does
        tried = tried[helped.any(axis=0)] if len(every) > _MANY and helped.any() else every
    climbed: Ints = rows[np.argsort(-values, kind="stable")]
    return climbed


def _signed_log(excesses: Floats) -> Floats:
    """Return excesses with their signs and the logarithms of their sizes: a huge one must not flatten the rest."""
    compressed: Floats = np.sign(excesses) * np.log1p(10 * np.abs(excesses))
    return compressed


def _log_information(deviation: Floats, noise: float) -> Floats:
    """Return log(1 - noise / sqrt(deviation² + noise²)), the share of new information, without cancellation."""
    whole = np.hypot(deviation, noise)
    return 2 * np.log(deviation) - np.log(whole) - np.log(whole + noise)


def _log_improvement(z: Floats) -> Floats:
    """Return log(phi(z) + z Phi(z)), the logarithm of the expected improvement in units of the deviation."""
    # Below -5 the direct form cancels to 0 and its logarithm to -inf; the tail is its asymptotic expansion.
    safe = np.maximum(z, -5.0)
    direct = np.log(np.exp(-0.5 * safe**2) / np.sqrt(2 * np.pi) + safe * np.exp(scipy.special.log_ndtr(safe)))
    tail = np.minimum(z, -5.0)
    total: Floats = np.where(z > -5.0, direct, -0.5 * tail**2 - 2 * np.log(-tail) - 0.5 * np.log(2 * np.pi))
    return total
