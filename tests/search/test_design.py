"""Points that need no results."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import qmc

from retune.search import design
from retune.search.problem import hashed, pose
from retune.search.random import RandomSettings
from retune.space import tribes2024
from retune.testing.algorithms import LOSS


def problem(seed):
    return pose(tribes2024(), LOSS, RandomSettings(), [], seed, None)


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(0, 5))
def test_a_latin_hypercube_is_scipys(seed, size, block):
    """Earlier releases called it: a study of theirs goes on with the points that it began with."""
    posed = problem(seed)
    rows = qmc.LatinHypercube(4, rng=hashed(seed, "latin hypercube", block)).random(size)
    assert design.latin_hypercube(posed, size, block) == [
        posed.snap(posed.space.from_unit(row)) for row in rows.tolist()
    ]


@pytest.mark.parametrize("size", [1, 10])
def test_each_parameter_has_one_point_in_each_of_as_many_parts(size):
    space = tribes2024()
    rates = [space.decode(levels)["learning_rate"] for levels in design.latin_hypercube(problem(0), size)]
    low, high = np.log10(1e-6), np.log10(1e-3)
    assert sorted(((np.log10(rates) - low) / (high - low) * size).astype(int).clip(0, size - 1)) == [
        *range(size)
    ]
