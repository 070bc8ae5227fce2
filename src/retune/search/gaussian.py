"""Gaussian-process regression (Rasmussen and Williams 2006) for a few hundred points, in NumPy.

The function is a sum of two: one of all parameters together, and one of each parameter alone (Duvenaud et al. 2011).
The second learns what a parameter does from few points, wherever the others are. Both have a Matérn 5/2 kernel with
the same length scale a parameter. There is a noise term, and log-normal priors; the hyper-parameters are the maximum
of the posterior. Written here because the libraries that have it bring torch or refit in
seconds, and the service's image must stay small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy  # loads its submodules on first use; most commands need none

from retune.search.lattice import Floats, Ints

_SQRT5 = np.sqrt(5.0)
_JITTER = 1e-8
_BLOCK = 256  # points predicted at a time: their kernel stays in the processor's cache
_FEW = 300  # points up to which looking for equal values takes longer than it saves
_FITTED = 150  # points used to fit the hyper-parameters; the cost grows with the cube

# Priors on the logarithms: length scale (of the unit cube), signal variance, noise variance of standardised values.
_PRIOR_MEAN = {"length": np.log(0.5), "joint": np.log(0.5), "single": np.log(0.5), "noise": np.log(0.01)}
_PRIOR_SD = {"length": 1.0, "joint": 1.0, "single": 1.0, "noise": 1.5}
_LOWEST = {"length": np.log(0.03), "joint": np.log(1e-3), "single": np.log(1e-3), "noise": np.log(1e-5)}
_HIGHEST = {"length": np.log(20.0), "joint": np.log(20.0), "single": np.log(20.0), "noise": 0.0}


@dataclass(frozen=True)
class Gaussian:
    """A fitted process. `inputs` has shape (n, columns), `values` (n,), standardised by `shift` and `scale`."""

    inputs: Floats
    values: Floats
    kernel: Kernel
    log_noise: float
    shift: float
    scale: float
    factor: Floats
    weights: Floats

    @property
    def noise(self) -> float:
        """The standard deviation of a measurement, in the unit of the values."""
        return float(self.scale * np.exp(0.5 * self.log_noise))

    def predict(self, inputs: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of the noise-free function at `inputs`, each of shape (m,)."""
        mean, variance = np.zeros(len(inputs)), np.full(len(inputs), self.kernel.variance)
        if len(self.values):
            cross_of = self.kernel.between(inputs, self.inputs)
            for begin in range(0, len(inputs), _BLOCK):
                block = slice(begin, begin + _BLOCK)
                cross = cross_of(block)
                mean[block] = cross @ self.weights
                half = scipy.linalg.solve_triangular(self.factor, cross.T, lower=True, check_finite=False)
                variance[block] -= np.einsum("ij,ij->j", half, half)
        return self.shift + self.scale * mean, self.scale * np.sqrt(np.maximum(variance, 1e-12))

    def loo_log_density(self) -> float:
        """Return the log density of the values, each predicted from all others (Rasmussen and Williams 2006, 5.4.2)."""
        precision = np.diag(
            scipy.linalg.cho_solve((self.factor, True), np.eye(len(self.values)), check_finite=False)
        )
        off = self.weights / precision
        density = -0.5 * (off**2 * precision - np.log(precision) + np.log(2 * np.pi)) - np.log(self.scale)
        return float(density.sum())

    def condition_on(self, inputs: Floats, values: Floats) -> Gaussian:
        """Return the process with further points, the hyper-parameters kept."""
        standard = (values - self.shift) / self.scale
        return _condition(
            np.vstack([self.inputs, inputs]),
            np.concatenate([self.values, standard]),
            self.kernel,
            self.log_noise,
            (self.shift, self.scale),
        )


def fit(inputs: Floats, values: Floats, groups: Ints, units: tuple[float, float] | None = None) -> Gaussian:
    """Fit a process to `values`, shape (n,), at `inputs`, shape (n, columns).

    `units` are the mean and the standard deviation that are expected before anything is measured; by default those of
    `values`. With them n may be 0.
    """
    shift, scale = units or (float(np.mean(values)), float(np.std(values)) or 1.0)
    standard = (values - shift) / scale
    count = int(groups.max()) + 1 if len(groups) else 0
    names = ["length"] * count + ["joint", "single", "noise"]
    mean, deviation = (np.array([prior[name] for name in names]) for prior in (_PRIOR_MEAN, _PRIOR_SD))
    if not len(values):
        return _condition(inputs, standard, Kernel.of(mean, groups), mean[-1], (shift, scale))
    chosen = np.argsort(standard, kind="stable")[:_FITTED]  # the good ones: there the model must be right
    optimum = scipy.optimize.minimize(
        _objective,
        mean,
        args=(_SQRT5 * np.sqrt(_squares(inputs[chosen], groups, count)), standard[chosen], mean, deviation),
        jac=True,
        method="L-BFGS-B",
        bounds=[(_LOWEST[name], _HIGHEST[name]) for name in names],
        options={"maxiter": 60, "ftol": 1e-6},  # relative; closer to the maximum no prediction changes
    )
    return _condition(inputs, standard, Kernel.of(optimum.x, groups), float(optimum.x[-1]), (shift, scale))


@dataclass(frozen=True)
class Kernel:
    """The covariance: `groups` has each column's parameter, `log_lengths` each parameter's length scale.

    `log_joint` and `log_single` are the variances of the function of all parameters together and of the sum of those of one.
    """

    groups: Ints
    log_lengths: Floats
    log_joint: float
    log_single: float

    @classmethod
    def of(cls, logs: Floats, groups: Ints) -> Kernel:
        """Return the kernel of a vector of hyper-parameters, as `fit` orders them."""
        return cls(groups, logs[:-3], float(logs[-3]), float(logs[-2]))

    @property
    def variance(self) -> float:
        """The variance of the function at a point."""
        return float(np.exp(self.log_joint) + (np.exp(self.log_single) if len(self.groups) else 0.0))

    def between(self, left: Floats, right: Floats) -> Callable[[slice], Floats]:
        """Return a function that computes the rows of the covariance of two sets of points.

        Points of a search share most of their single values, so each of these is computed once. A search asks for millions of
        these numbers.
        """
        scale = _SQRT5 * np.exp(-self.log_lengths[self.groups])
        left, right = left * scale, right * scale
        square = (right**2).sum(axis=1)
        joint, share = np.exp(self.log_joint), np.exp(self.log_single) / max(len(self.log_lengths), 1)
        tables = []
        for group in range(len(self.log_lengths)):
            columns = np.flatnonzero(self.groups == group)
            ours, index = left[:, columns], None
            if len(columns) == 1 and len(left) > _FEW:
                distinct, index = np.unique(ours[:, 0], return_inverse=True)
                ours = distinct[:, None]
            table = _matern(scipy.spatial.distance.cdist(ours, right[:, columns]))
            table *= share
            tables.append((table, index))

        def rows(block: slice) -> Floats:
            # Rounding moves a distance near 0 by 1e-7, which the kernel, flat there, does not show
            squares = (left[block] ** 2).sum(axis=1)[:, None] + square - 2 * (left[block] @ right.T)
            covariance: Floats = _matern(np.sqrt(np.maximum(squares, 0, out=squares), out=squares))
            covariance *= joint
            for table, index in tables:
                covariance += table[block] if index is None else table[index[block]]
            return covariance

        return rows


def _condition(
    inputs: Floats, standard: Floats, kernel: Kernel, noise: float, units: tuple[float, float]
) -> Gaussian:
    covariance = kernel.between(inputs, inputs)(slice(None))
    covariance[np.diag_indices_from(covariance)] += np.exp(noise) + _JITTER
    if len(standard):
        factor = scipy.linalg.cholesky(covariance, lower=True, check_finite=False)
        weights = scipy.linalg.cho_solve((factor, True), standard, check_finite=False)
    else:
        factor, weights = covariance, standard
    return Gaussian(inputs, standard, kernel, noise, *units, factor, weights)


def _squares(inputs: Floats, groups: Ints, count: int) -> Floats:
    """Return the squared differences of all pairs by group, of which there are `count`; shape (groups, pairs)."""
    left, right = np.triu_indices(len(inputs), 1)
    squares = np.zeros((count, len(left)))
    for column, group in enumerate(groups):
        squares[group] += (inputs[left, column] - inputs[right, column]) ** 2
    return squares


def _matern(distances: Floats) -> Floats:
    """Return the kernel of unit variance at distances in length scales, times the root of 5; `distances` is spoilt."""
    kernel: Floats = distances**2
    kernel /= 3
    kernel += distances
    kernel += 1
    np.negative(distances, out=distances)
    kernel *= np.exp(distances, out=distances)
    return kernel


def _objective(
    logs: Floats, roots: Floats, values: Floats, prior_mean: Floats, prior_sd: Floats
) -> tuple[float, Floats]:
    """Return the negative log posterior of the hyper-parameters and its gradient.

    `roots` are the distances of the pairs of points by group, times the root of 5: the covariance is symmetric.
    """
    count, upper = len(roots), np.triu_indices(len(values), 1)
    joint, single, noise = np.exp(logs[count:])
    share = single / max(count, 1)
    apart = roots * np.exp(-logs[:count, None])
    squares = apart**2
    decay = np.exp(-apart)
    slopes = squares * (1 + apart) * decay  # of each parameter's kernel by its log length, times 3
    apart += 1
    apart += squares / 3
    apart *= decay  # the kernels of the parameters
    distance = np.sqrt(squares.sum(axis=0))
    decay = np.exp(-distance)
    together = (1 + distance + distance**2 / 3) * decay
    covariance = np.zeros((len(values), len(values)))
    covariance[upper[::-1]] = joint * together + share * apart.sum(axis=0)
    covariance[np.diag_indices_from(covariance)] = joint + (single if count else 0.0) + noise + _JITTER
    factor = scipy.linalg.cholesky(covariance, lower=True, check_finite=False)
    weights = scipy.linalg.cho_solve((factor, True), values, check_finite=False)
    inverse, _ = scipy.linalg.lapack.dpotri(factor, lower=True)  # only the lower triangle
    pairs = weights[upper[0]] * weights[upper[1]] - inverse[upper[::-1]]
    trace = weights @ weights - np.trace(inverse)
    gradient = np.empty_like(logs)
    gradient[:count] = -(share * (slopes @ pairs) + squares @ (joint * (1 + distance) * decay * pairs)) / 3
    gradient[count] = -joint * (together @ pairs + 0.5 * trace)
    gradient[count + 1] = -share * ((apart @ pairs).sum() + 0.5 * count * trace)
    gradient[count + 2] = -0.5 * noise * trace
    value = 0.5 * values @ weights + np.log(np.diag(factor)).sum()
    off = (logs - prior_mean) / prior_sd
    return float(value + 0.5 * off @ off), gradient + off / prior_sd
