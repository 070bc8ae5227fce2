"""Gaussian-process regression (Rasmussen and Williams 2006) for a few hundred points, in NumPy.

Matérn 5/2 kernel with a length scale a parameter, a noise term, and log-normal priors; the hyper-parameters
are the maximum of the posterior. Written here because the libraries that have it bring torch or refit in
seconds, and the service's image must stay small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # loads its submodules on first use; most commands need none

from retune.search.lattice import Floats, Ints

_SQRT5 = np.sqrt(5.0)
_JITTER = 1e-8
_BLOCK = 256  # points predicted at a time: their kernel stays in the processor's cache
_FITTED = 150  # points used to fit the hyper-parameters; the cost grows with the cube

# Priors on the logarithms: length scale (of the unit cube), signal variance, noise variance of standardised values.
_PRIOR_MEAN = {"length": np.log(0.5), "signal": 0.0, "noise": np.log(0.01)}
_PRIOR_SD = {"length": 1.0, "signal": 1.0, "noise": 1.5}


@dataclass(frozen=True)
class Gaussian:
    """A fitted process. `inputs` has shape (n, columns), `values` (n,), standardised by `shift` and `scale`."""

    inputs: Floats
    values: Floats
    log_lengths: Floats
    log_signal: float
    log_noise: float
    groups: Ints
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
        scale = _SQRT5 * np.exp(-self.log_lengths[self.groups])
        known, signal = self.inputs * scale, np.exp(self.log_signal)
        square = (known**2).sum(axis=1)
        mean, variance = np.zeros(len(inputs)), np.full(len(inputs), signal)
        for begin in range(0, len(inputs) if len(self.values) else 0, _BLOCK):
            block = slice(begin, begin + _BLOCK)
            cross = _matern(inputs[block] * scale, known, square)
            cross *= signal
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
            (self.log_lengths, self.log_signal, self.log_noise),
            self.groups,
            (self.shift, self.scale),
        )


def fit(inputs: Floats, values: Floats, groups: Ints, units: tuple[float, float] | None = None) -> Gaussian:
    """Fit a process to `values`, shape (n,), at `inputs`, shape (n, columns).

    `units` are the mean and the standard deviation that are expected before anything is measured; by default those of
    `values`. With them n may be 0.
    """
    shift, scale = units or (float(np.mean(values)), float(np.std(values)) or 1.0)
    standard = (values - shift) / scale
    if not len(values):
        return _condition(inputs, standard, _expected_logs(groups), groups, (shift, scale))
    chosen = np.argsort(standard, kind="stable")[:_FITTED]  # the good ones: there the model must be right
    count = int(groups.max()) + 1 if len(groups) else 0
    squares = _squares(inputs[chosen], inputs[chosen], groups)
    mean = np.array([_PRIOR_MEAN["length"]] * count + [_PRIOR_MEAN["signal"], _PRIOR_MEAN["noise"]])
    deviation = np.array([_PRIOR_SD["length"]] * count + [_PRIOR_SD["signal"], _PRIOR_SD["noise"]])
    bounds = [(np.log(0.03), np.log(20.0))] * count + [
        (np.log(0.05), np.log(20.0)),
        (np.log(1e-5), np.log(1.0)),
    ]
    found = scipy.optimize.minimize(
        _objective,
        mean,
        args=(squares, standard[chosen], mean, deviation),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 60, "ftol": 1e-6},  # relative; closer to the maximum no prediction changes
    )
    *lengths, signal, noise = found.x.tolist()
    return _condition(inputs, standard, (np.array(lengths), signal, noise), groups, (shift, scale))


def _expected_logs(groups: Ints) -> tuple[Floats, float, float]:
    """Return the hyper-parameters before anything is measured."""
    count = int(groups.max()) + 1 if len(groups) else 0
    return np.full(count, _PRIOR_MEAN["length"]), _PRIOR_MEAN["signal"], float(_PRIOR_MEAN["noise"])


def _condition(
    inputs: Floats,
    standard: Floats,
    logs: tuple[Floats, float, float],
    groups: Ints,
    units: tuple[float, float],
) -> Gaussian:
    lengths, signal, noise = logs
    covariance = _kernel(inputs, inputs, lengths[groups], signal)
    covariance[np.diag_indices_from(covariance)] += np.exp(noise) + _JITTER
    if len(standard):
        factor = scipy.linalg.cholesky(covariance, lower=True, check_finite=False)
        weights = scipy.linalg.cho_solve((factor, True), standard, check_finite=False)
    else:
        factor, weights = covariance, standard
    return Gaussian(inputs, standard, lengths, signal, noise, groups, *units, factor, weights)


def _squares(left: Floats, right: Floats, groups: Ints) -> Floats:
    """Return the squared differences by group, shape (groups, n, m)."""
    count = int(groups.max()) + 1 if len(groups) else 0
    found = np.zeros((count, len(left), len(right)))
    for column, group in enumerate(groups):
        found[group] += (left[:, None, column] - right[None, :, column]) ** 2
    return found


def _kernel(left: Floats, right: Floats, log_lengths: Floats, log_signal: float) -> Floats:
    """Return the covariance of two sets of points; `log_lengths` has one entry a column."""
    scale = np.exp(-log_lengths)
    distance = _SQRT5 * scipy.spatial.distance.cdist(left * scale, right * scale)
    kernel: Floats = np.exp(log_signal) * (1 + distance + distance**2 / 3) * np.exp(-distance)
    return kernel


def _matern(left: Floats, right: Floats, square: Floats) -> Floats:
    """Return the kernel of unit signal between scaled points; `square` holds the squared lengths of `right`.

    By one product of matrices and in place: a search asks for millions of these. Rounding moves a distance near 0 by 1e-7,
    which the kernel, flat there, does not show.
    """
    squares = (left**2).sum(axis=1)[:, None] + square - 2 * (left @ right.T)
    np.maximum(squares, 0, out=squares)
    distance = np.sqrt(squares)
    squares /= 3
    squares += 1
    squares += distance
    np.negative(distance, out=distance)
    squares *= np.exp(distance, out=distance)
    found: Floats = squares
    return found


def _objective(
    logs: Floats, squares: Floats, values: Floats, prior_mean: Floats, prior_sd: Floats
) -> tuple[float, Floats]:
    """Return the negative log posterior of the hyper-parameters and its gradient."""
    lengths, signal, noise = logs[:-2], np.exp(logs[-2]), np.exp(logs[-1])
    weight, flat = np.exp(-2 * lengths), squares.reshape(len(lengths), -1)
    distance = _SQRT5 * np.sqrt(weight @ flat).reshape(len(values), -1)
    decay = np.exp(-distance)
    kernel = signal * (1 + distance + distance**2 / 3) * decay
    covariance = kernel + (noise + _JITTER) * np.eye(len(values))
    factor = scipy.linalg.cholesky(covariance, lower=True, check_finite=False)
    weights = scipy.linalg.cho_solve((factor, True), values, check_finite=False)
    inverse = scipy.linalg.cho_solve((factor, True), np.eye(len(values)), check_finite=False)
    outer = np.outer(weights, weights) - inverse
    # Of the kernel by the log length, over the scaled square
    slope = signal * (5 / 3) * (1 + distance) * decay
    gradient = np.empty_like(logs)
    gradient[:-2] = -0.5 * weight * (flat @ (outer * slope).ravel())
    gradient[-2] = -0.5 * np.sum(outer * kernel)
    gradient[-1] = -0.5 * noise * np.trace(outer)
    value = 0.5 * values @ weights + np.log(np.diag(factor)).sum()
    off = (logs - prior_mean) / prior_sd
    return float(value + 0.5 * off @ off), gradient + off / prior_sd
