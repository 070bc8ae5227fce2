"""The model of `gp` and `mads-global` learns from stopped trials: it knows the share of training behind each loss."""

import numpy as np
import pytest

from retune.search import Objective, Observation, explain
from retune.search.fidelity import MultiFidelityModel
from retune.search.gaussian import fit
from retune.search.lattice import Lattice
from retune.search.problem import pose
from retune.search.random import RandomSettings
from retune.search.squashing import squashed
from retune.search.transfer import objective_model
from retune.space import Parameter, Space

SPACE = Space(
    parameters=(
        Parameter(name="a", kind="real", low=0, high=1, step=0.01, default=0.5),
        Parameter(name="b", kind="real", low=0, high=1, step=0.01, default=0.5),
    )
)
SHARES = (1 / 9, 1 / 3)


def final(a, b):
    return 1 + (a - 0.3) ** 2 + 0.5 * (b - 0.8) ** 2


def at(a, b, share):
    """The loss falls to the final one, alike for all settings but for a small crossing."""
    return final(a, b) + 0.8 * (1 - share) + 0.05 * (1 - share) * a


def history(stopped, whole, seed=0):
    draw = np.random.default_rng(seed)
    found = []
    for number in range(1, stopped + whole + 1):
        a, b = (float(x) for x in np.round(draw.random(2), 2))
        rungs = tuple((share, at(a, b, share)) for share in SHARES[: 2 if number % 2 else 1])
        if number <= whole:
            rungs = tuple((share, at(a, b, share)) for share in SHARES)
            status, value = "completed", final(a, b)
        else:
            status, value = "early_stopped", rungs[-1][1]
        found.append(
            Observation(
                {"a": a, "b": b}, status, {"validation_loss": value}, f"t{number}", number, rungs=rungs
            )
        )
    return found


def problem(history):
    return pose(SPACE, Objective(), RandomSettings(), history, 0, None)


def test_stopped_trials_make_the_model_of_whole_trainings_better():
    """It orders settings by the loss at the end better than a model of the whole trainings alone."""
    scores = []
    for seed in range(5):
        posed = problem(history(stopped=20, whole=4, seed=seed))
        lattice = Lattice(SPACE)
        model = objective_model(posed, lattice)
        assert isinstance(model, MultiFidelityModel)
        whole = [point for point in posed.ok if point.whole]
        alone = fit(
            lattice.features([p.levels for p in whole]),
            squashed(np.array([p.value for p in whole])),
            lattice.groups,
        )
        grid = [(i, j) for i in range(0, 101, 10) for j in range(0, 101, 10)]
        truth = np.array([final(i / 100, j / 100) for i, j in grid])
        inputs = lattice.features(grid)
        scores.append([_spearman(m.predict(inputs)[0], truth) for m in (model, alone)])
    taught, untaught = np.mean(scores, axis=0)
    assert taught > 0.95
    assert taught > untaught + 0.1


def _spearman(first, second):
    return np.corrcoef(np.argsort(np.argsort(first)), np.argsort(np.argsort(second)))[0, 1]


def test_a_stopped_trial_is_no_winner_for_the_algorithms_without_such_a_model():
    """Its value is no better than the median of the whole ones, though a rung's loss may be lower by chance."""
    entries = [
        Observation({"a": 0.1 * k, "b": 0.5}, "completed", {"validation_loss": float(k)}, number=k)
        for k in range(1, 6)
    ]
    entries.append(
        Observation(
            {"a": 0.9, "b": 0.9}, "early_stopped", {"validation_loss": 0.5}, number=6, rungs=((0.3, 0.5),)
        )
    )
    posed = problem(entries)
    assert posed.points[-1].value == 3.0
    assert not posed.points[-1].whole
    assert posed.best.value == 1.0


@pytest.mark.parametrize("algorithm", ["gp", "mads-global", "tpe", "random", "soo", "nomad"])
def test_every_algorithm_goes_on_from_a_history_with_stopped_trials(algorithm):
    entries = history(stopped=9, whole=3)
    args = (algorithm, SPACE, Objective(), {})
    first = explain(*args, entries, 2, 0)
    again = explain(*args, list(reversed(entries)), 2, 0)
    assert first == again
    assert len({tuple(p.assignment.items()) for p in first}) == 2


def test_without_rungs_nothing_is_modelled_otherwise():
    whole = history(stopped=0, whole=8)
    bare = [Observation(e.assignment, e.status, e.values, e.name, e.number) for e in whole]
    points = [explain("gp", SPACE, Objective(), {"LH_SEARCH": 2}, h, 3, 0) for h in (whole, bare)]
    assert points[0] == points[1]
