"""What earlier studies say about this one: their shape is used, their level and scale are fitted again.

Losses of another data set or number of epochs are not comparable with this study's, but good settings tend to be good
again. Each earlier study gets a Gaussian process of its own; this study's results are modelled as
``a + b * earlier(x) + rest(x)`` with several b if there are several studies. a and b are least squares on the results so
far; b is shrunk towards equal shares while there are few, and never negative. The rest is a Gaussian process too, so a
study unlike the earlier ones is soon modelled by its own results alone. Values are in squashed units (`retune.search.squashing`).

Model-based algorithms use this as their mean (`TransferModel`). All others see an earlier trial with the value expected here
(`adapted`), so the level of an earlier study does not reach them either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from retune.search.fidelity import MultiFidelityModel
from retune.search.gaussian import Gaussian, fit
from retune.search.lattice import Floats, Ints, Lattice
from retune.search.problem import Levels, Point, Problem
from retune.search.squashing import spread_of, squashed, unsquashed

_MODELLED = 400  # points in a model at most: the best ones
_TRUST = 4.0  # weight of an earlier study's scale and similarity, in results of this study
_ENOUGH_RESULTS = 6  # with this many results, earlier studies are used only while they predict them better
_EVIDENCE = 2.3  # log density by which they must be better: ten times as likely
_PRIOR_DIFFERENCE = 0.3  # assumed difference between studies before there are results, in squashed units (a spread is about one)


class TransferModel:
    """A model of the objective whose mean comes from earlier studies; the interface of `Gaussian`.

    Args:
        lattice: of the space.
        own: levels of this study's results. values: the values, in the unit of `scale`.
        earlier: levels and squashed values of each earlier study.

    """

    def __init__(
        self, lattice: Lattice, own: Ints, values: Floats, earlier: Sequence[tuple[Ints, Floats]]
    ) -> None:
        self._groups = lattice.groups
        self._sources = [
            fit(lattice.features(points), targets, lattice.groups) for points, targets in earlier
        ]
        inputs = lattice.features(own)
        self._level, self._shares = self._aligned(inputs, values)
        rest = values - self._prior(inputs)
        variance = (np.sum(rest**2) + _TRUST * _PRIOR_DIFFERENCE**2) / (len(rest) + _TRUST)
        self._rest = fit(inputs, rest, lattice.groups, (0.0, float(np.sqrt(variance))))

    def _aligned(self, inputs: Floats, values: Floats) -> tuple[float, Floats]:
        """Return a and b by least squares, b shrunk towards equal shares."""
        count = len(self._sources)
        shares = np.full(count, 1.0 / count)
        if not len(values):
            return 0.0, shares
        expected = np.stack([source.predict(inputs)[0] for source in self._sources], axis=1)
        centred, wanted = expected - expected.mean(axis=0), values - values.mean()
        prior = _TRUST * _PRIOR_DIFFERENCE**2 * np.eye(count)
        off = np.linalg.solve(centred.T @ centred + prior, centred.T @ (wanted - centred @ shares))
        shares = np.maximum(shares + off, 0.0)
        return float(np.mean(values - expected @ shares)), shares

    def _prior(self, inputs: Floats) -> Floats:
        means = [
            share * source.predict(inputs)[0]
            for share, source in zip(self._shares, self._sources, strict=True)
        ]
        total: Floats = self._level + np.sum(means, axis=0)
        return total

    @property
    def noise(self) -> float:
        """The standard deviation of a measurement."""
        return self._rest.noise

    def loo_log_density(self) -> float:
        """Return the log density of this study's results, each predicted from all others."""
        return self._rest.loo_log_density()

    def predict(self, inputs: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of the noise-free function at `inputs`, each of shape (m,)."""
        mean, deviation = self._rest.predict(inputs)
        return self._prior(inputs) + mean, deviation

    def condition_on(self, inputs: Floats, values: Floats) -> TransferModel:
        """Return the model with further points, everything else kept."""
        model = object.__new__(TransferModel)
        model.__dict__.update(self.__dict__)
        model._rest = self._rest.condition_on(inputs, values - self._prior(inputs))
        return model


def objective_model(problem: Problem, lattice: Lattice) -> Gaussian | TransferModel | MultiFidelityModel:
    """Return the model of the objective, in squashed units, from the best points of this study and of earlier ones."""
    earlier = _by_source(problem.earlier)
    own = [point for point in problem.ok if point.source is None]
    kept = sorted(own, key=lambda point: point.merit)[:_MODELLED]
    values = np.array([point.value for point in kept])
    if not earlier:
        if any(not point.whole for point in kept):
            return MultiFidelityModel.of(lattice, kept)
        return fit(lattice.features([p.levels for p in kept]), squashed(values), lattice.groups)
    sources = [(_levels(lattice, ps), squashed(np.array([p.value for p in ps]))) for ps in earlier.values()]
    unit = _unit(values, list(earlier.values()))
    own_values = squashed(values, unit) if len(values) else values
    model = TransferModel(lattice, _levels(lattice, kept), own_values, sources)
    if len(kept) < _ENOUGH_RESULTS:
        return model
    inputs = lattice.features([point.levels for point in kept])
    if model.loo_log_density() > fit(inputs, own_values, lattice.groups).loo_log_density() + _EVIDENCE:
        return model
    return fit(inputs, squashed(values), lattice.groups)


def uses_earlier_studies(
    problem: Problem, model: Gaussian | TransferModel | MultiFidelityModel
) -> bool | None:
    """Return whether the chosen `model` uses earlier studies; None while there are too few results to choose."""
    own = sum(point.source is None for point in problem.ok)
    return isinstance(model, TransferModel) if own >= _ENOUGH_RESULTS else None


def adapted(problem: Problem) -> Problem:
    """Return the problem with each earlier trial at the value that is expected in this study."""
    same = [point for point in problem.warm if point.source is None]
    foreign = {point.levels: point for point in problem.warm if point.source is not None}
    foreign |= {p.levels: p for p in problem.warm if p.source is not None and p.outcome == "ok"}
    for point in same:
        foreign.pop(point.levels, None)
    good = [point for point in foreign.values() if point.outcome == "ok"]
    lattice = Lattice(problem.space)
    columns = [
        _expected(problem, lattice, [point.levels for point in good], k) for k in range(problem.objectives)
    ]
    sources = [
        point._replace(value=row[0], further=row[1:])
        for point, row in zip(good, zip(*columns, strict=True), strict=True)
    ]
    failed = [point for point in foreign.values() if point.outcome != "ok"]
    return replace(problem, warm=(*same, *sources, *failed))


def _expected(problem: Problem, lattice: Lattice, points: Sequence[Levels], objective: int) -> list[float]:
    """Return what is expected of `points` here in one objective, in this study's own unit if it has results."""
    if not points:
        return []

    def one(points: Sequence[Point]) -> tuple[Point, ...]:
        return tuple(p._replace(value=p.values[objective]) if p.outcome == "ok" else p for p in points)

    own = one([point for point in problem.ok if point.source is None])
    view = replace(problem, points=own, warm=(), earlier=one(problem.earlier))
    mean = objective_model(view, lattice).predict(lattice.features(points))[0]
    if not own:
        return [float(value) for value in mean]
    values = np.array([point.value for point in own])
    unit = _unit(values, list(_by_source(view.earlier).values()))
    return [float(value) for value in unsquashed(mean, values, unit)]


def _by_source(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Return the results of each earlier study, the best ones first."""
    groups: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda p: (p.source or "", p.value, p.levels)):
        if point.outcome == "ok":
            groups.setdefault(point.source or "", []).append(point)
    return {source: kept[:_MODELLED] for source, kept in groups.items()}


def _unit(values: Floats, earlier: Sequence[Sequence[Point]]) -> float:
    """Return the unit to squash this study's values by: the earlier studies' at first, more and more its own."""
    others = np.mean([np.log(spread_of(np.array([p.value for p in points]))) for points in earlier])
    if len(values) < 2:
        return float(np.exp(others))
    own = np.log(spread_of(values))
    return float(np.exp((_TRUST * others + len(values) * own) / (_TRUST + len(values))))


def _levels(lattice: Lattice, points: Sequence[Point]) -> Ints:
    return np.array([point.levels for point in points], dtype=np.int64).reshape(-1, len(lattice.tops))
