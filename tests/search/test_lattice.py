"""What the models see of a setting."""

import numpy as np
import pytest

from retune.search.gaussian import fit
from retune.search.lattice import Lattice
from retune.space import Parameter, Space


def space(scale, low, high, kind="real"):
    return Space(parameters=(Parameter(name="p", kind=kind, low=low, high=high, scale=scale),))


def seen(of):
    """What the models see of every level."""
    lattice = Lattice(of)
    return lattice.features(np.arange(lattice.tops[0] + 1)[:, None])[:, 0]


@pytest.mark.parametrize(
    "of", [space("log", 1e-6, 1e-1), space("log", 2, 512, "integer")], ids=["rate", "rank"]
)
def test_models_see_each_decade_of_a_log_scale_wider_than_the_one_before(of):
    """As powers of 0.2 of the values: a decade is 10 ** 0.2 = 1.58 times as wide as the one below."""
    values, places = np.array([float(of["p"].value(k)) for k in range(of["p"].levels)]), seen(of)
    assert (np.diff(places) > 0).all()
    assert 0 <= places[0] < 0.01
    assert 0.99 < places[-1] <= 1
    decades = np.interp(
        np.arange(np.ceil(np.log10(values[0])), np.log10(values[-1]) + 1e-9), np.log10(values), places
    )
    widths = np.diff(decades)
    assert widths[1:] / widths[:-1] == pytest.approx(10**0.2, rel=0.02)


def test_models_see_a_linear_scale_as_it_is():
    assert np.diff(seen(space("linear", 0, 1))) == pytest.approx(1 / 101)


@pytest.mark.parametrize("bounds", [(1e-300, 1e300), (1.0, 1.0001)], ids=["wide", "narrow"])
def test_any_log_scale_can_be_seen(bounds):
    places = seen(space("log", *bounds))
    assert np.isfinite(places).all()
    assert (np.diff(places) >= 0).all()
    assert 0 <= places.min() <= places.max() <= 1


def test_a_loss_that_is_flat_over_small_rates_is_learnt_from_few_trials():
    """Flat below 1e-4, falling to 8e-3, then steep, as the losses of LoRA trials are: the error is 0.7 of that over the logarithm."""
    lattice = Lattice(space("log", 1e-6, 1e-1))
    levels = np.arange(lattice.tops[0] + 1)[:, None]
    rate = 10 ** (-6 + levels[:, 0] / 100)
    loss = np.minimum(0.55 * np.exp(-rate / 2e-3) + 300 * np.maximum(rate - 8e-3, 0) ** 2, 1)
    errors = {"features": [], "logarithm": []}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        tried = ((np.arange(12) + rng.random(12)) / 12 * len(levels)).astype(int)
        for name, inputs in (
            ("features", lattice.features(levels)),
            ("logarithm", lattice.positions(levels)),
        ):
            model = fit(inputs[tried], loss[tried], lattice.groups)
            errors[name].append(np.abs(model.predict(inputs)[0] - loss).mean())
    assert np.mean(errors["features"]) < 0.85 * np.mean(errors["logarithm"])
