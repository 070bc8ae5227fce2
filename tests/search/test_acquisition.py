"""The search for the maximum of the acquisition function, and the number of predictions that it takes."""

import random

import numpy as np
import pytest

from retune import search
from retune.search import Objective, Observation
from retune.search.acquisition import climb
from retune.search.gaussian import Gaussian, fit
from retune.search.lattice import Lattice
from retune.space import Parameter, Space


def cube(size):
    return Space(
        parameters=tuple(
            Parameter(name=f"p{k}", kind="real", low=0, high=1, default=0.5) for k in range(size)
        )
    )


def matern(distances):
    """The Matérn 5/2 kernel of unit variance."""
    scaled = np.sqrt(5) * distances
    return (1 + scaled + scaled**2 / 3) * np.exp(-scaled)


def test_predictions_are_those_of_the_textbook_however_many_points_are_asked_for():
    """Rasmussen and Williams (2006), equations 2.25 and 2.26, from the inverse; more points than one block has."""
    rng = np.random.default_rng(0)
    known, asked = rng.random((40, 3)), rng.random((700, 3))
    values = np.sin(5 * known[:, 0]) + known[:, 1]
    model = fit(known, values, np.arange(3))
    asked[0] = known[0]  # the distance is 0, and must not become the root of a rounding error below it
    lengths, kernel = np.exp(model.kernel.log_lengths), model.kernel

    def covariances(left):
        """One function of all parameters together, and one of each alone."""
        apart = np.abs(left[:, None] - known[None]) / lengths
        single = np.exp(kernel.log_single) / 3 * matern(apart).sum(axis=2)
        return np.exp(kernel.log_joint) * matern(np.sqrt((apart**2).sum(axis=2))) + single

    covariance = covariances(known) + np.exp(model.log_noise) * np.eye(40)
    cross = covariances(asked)
    inverse = np.linalg.inv(covariance)
    mean, deviation = model.predict(asked)
    assert mean == pytest.approx(model.shift + model.scale * cross @ inverse @ model.values, abs=1e-5)
    variance = (
        np.exp(kernel.log_joint) + np.exp(kernel.log_single) - np.einsum("ij,jk,ik->i", cross, inverse, cross)
    )
    assert deviation == pytest.approx(model.scale * np.sqrt(variance), abs=1e-5)


@pytest.mark.parametrize("size", [4, 30])
def test_a_climb_ends_where_no_step_along_a_parameter_helps(size):
    """With 30 parameters there are too many steps to try all of them in each round."""
    lattice, rng = Lattice(cube(size)), np.random.default_rng(1)
    mixing = rng.standard_normal((size, size)) / size
    top = rng.integers(0, 101, size)

    def value(levels):
        away = levels - top
        return -((away + away @ mixing) ** 2).sum(axis=1)

    rows = rng.integers(0, 101, (3, size))
    climbed = climb(lattice, value, rows, value(rows), rounds=400)
    assert value(climbed).tolist() == sorted(value(climbed), reverse=True)
    for row in climbed:
        for step in (1, 2, 5, 10, 20, 50, -1, -2, -5, -10, -20, -50):
            around = np.clip(row + step * np.eye(size, dtype=np.int64), 0, 100)
            assert value(around).max() <= value(row[None])[0] + 1e-9


@pytest.mark.slow
def test_many_parameters_and_trials_need_few_predictions(monkeypatch):
    """60 parameters and 1,000 trials: a batch of 8 took 310,607 predictions; this search takes 30,939."""
    space, rng, history, asked = cube(60), random.Random(0), [], []
    for number in range(1000):
        assignment = space.decode(space.from_unit([rng.random() for _ in space.names]))
        loss = sum((value - 0.3) ** 2 * (1 + k % 3) for k, value in enumerate(assignment.values()))
        history.append(Observation(assignment, "completed", {"validation_loss": loss}, number=number))
    predict = Gaussian.predict
    monkeypatch.setattr(
        Gaussian, "predict", lambda self, inputs: asked.append(len(inputs)) or predict(self, inputs)
    )
    assert len(search.suggest("gp", space, Objective(), {"LH_SEARCH": 0}, history, 8, 0)) == 8
    assert sum(asked) < 60_000
