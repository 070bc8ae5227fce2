"""Rank correlation: known values, SciPy's values, and None where it is undefined."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from retune.selection.association import associate

values = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=12)


def test_a_textbook_example():
    """By hand: d² sums to 194 over n = 10, so rho = 1 - 6 * 194 / 990; 20 pairs one way, 25 the other: tau = -5 / 45."""
    iq = [86, 97, 99, 100, 101, 103, 106, 110, 112, 113]
    hours = [2, 20, 28, 27, 50, 29, 7, 17, 6, 12]
    found = associate(iq, hours)
    assert found.n == 10
    assert found.spearman == pytest.approx(-29 / 165)
    assert found.kendall == pytest.approx(-5 / 45)
    assert found.spearman_p == pytest.approx(0.63, abs=0.03)
    assert found.low < found.spearman < found.high


def test_few_models_try_every_order():
    found = associate([1, 2, 3], [0.3, 0.2, 0.1])
    assert (found.spearman, found.kendall) == (pytest.approx(-1), pytest.approx(-1))
    assert found.spearman_p == pytest.approx(2 / 6)  # 2 of the 6 orders of three are monotone
    assert found.kendall_p == pytest.approx(2 / 6)
    assert (found.low, found.high) == (None, None)
    assert associate([1, 2, 3, 4, 5], [5, 4, 3, 2, 1]).spearman_p == pytest.approx(2 / 120)


def test_nothing_is_said_of_too_few_or_of_constants():
    assert associate([1, 2], [1, 2]) is None
    assert associate([1, 2, 3], [1, 1, 1]) is None
    assert associate([1, 1, 1], [1, 2, 3]) is None


@settings(deadline=None, max_examples=40)
@given(values)
def test_coefficients_are_scipys_and_turn_with_the_sign(pairs):
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    found = associate(first, second)
    if found is None:
        assert len(set(first)) == 1 or len(set(second)) == 1
        return
    assert found.spearman == pytest.approx(stats.spearmanr(first, second).statistic)
    assert found.kendall == pytest.approx(stats.kendalltau(first, second).statistic)
    assert 0 < found.spearman_p <= 1
    turned = associate([-a for a in first], second)
    assert turned.spearman == pytest.approx(-found.spearman)
    assert turned.spearman_p == pytest.approx(found.spearman_p, abs=0.02)
    if found.low is not None:
        assert -1 <= found.low <= found.spearman + 1e-9 <= found.high + 2e-9 <= 1 + 4e-9
        assert associate(first, second) == found


def test_the_interval_is_bonett_and_wrights():
    rng = np.random.default_rng(0)
    first = rng.random(40)
    second = first + rng.random(40)
    found = associate(list(first), list(second))
    half = 1.959964 * math.sqrt((1 + found.spearman**2 / 2) / 37)
    assert math.atanh(found.high) - math.atanh(found.low) == pytest.approx(2 * half, rel=1e-5)
