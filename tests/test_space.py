"""Hyper-parameters: values survive the way through levels and strings, and equal points compare equal."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from retune.space import PRESETS, Parameter, Space, davouse2024, tidy, tribes2024

finite = {"allow_nan": False, "allow_infinity": False}


@st.composite
def ranges(draw):
    """Parameters of kind `real` and `integer`, as people write them, with up to six digits."""
    kind, scale = draw(st.sampled_from(["real", "integer"])), draw(st.sampled_from(["linear", "log"]))
    if kind == "integer":
        low = draw(st.integers(1 if scale == "log" else -500, 1000))
        high = low + draw(st.integers(0, 2000))
        step = (
            draw(st.none() | st.integers(1, 50))
            if scale == "linear"
            else draw(st.none() | st.floats(0.01, 1))
        )
    else:
        low = tidy(draw(st.floats(1e-10, 1e3) if scale == "log" else st.floats(-1e3, 1e3)))
        high = (
            tidy(low * 10 ** draw(st.floats(0, 6))) if scale == "log" else tidy(low + draw(st.floats(0, 1e3)))
        )
        step = draw(st.none() | st.floats(0.01, 1))
    default = draw(st.none() | st.floats(min(low, high), max(low, high)))
    try:
        return Parameter(name="x", kind=kind, low=low, high=high, scale=scale, step=step, default=default)
    except ValidationError as error:
        # Levels that are equal in six digits are refused, and a step that leaves one level
        assume("too close" not in str(error) and "`step` must be at most" not in str(error))
        raise


lists = st.one_of(
    st.lists(st.floats(-1e6, 1e6) | st.integers(-1000, 1000), min_size=1, max_size=9, unique_by=float).map(
        lambda values: Parameter(name="x", kind="discrete", values=tuple(sorted(values)))
    ),
    st.lists(st.text(max_size=5) | st.integers(-9, 9), min_size=1, max_size=9, unique_by=str).map(
        lambda values: Parameter(name="x", kind="categorical", values=tuple(values))
    ),
)
parameters = ranges() | lists


def some_levels(parameter):
    """Levels at both ends, and some between."""
    last = parameter.levels - 1
    return sorted({0, 1 % parameter.levels, last // 3, last // 2, max(0, last - 1), last})


@given(parameters)
def test_level_value_level(parameter):
    for level in some_levels(parameter):
        assert parameter.level(parameter.value(level)) == level


@given(parameters)
def test_value_survives_its_way_through_a_string(parameter):
    """Katib hands every value to a trial as text."""
    for level in some_levels(parameter):
        text = str(parameter.value(level))
        assert parameter.level(text) == level
        assert parameter.contains(text)


@given(parameters)
def test_values_lie_in_the_range_and_differ(parameter):
    values = [parameter.value(level) for level in some_levels(parameter)]
    assert len(set(map(str, values))) == len(values)
    assert all(parameter.contains(value) for value in values)
    if parameter.ordered:
        assert values == sorted(values)


@given(ranges())
def test_values_have_the_kind_of_their_parameter(parameter):
    for level in some_levels(parameter):
        value = parameter.value(level)
        assert isinstance(value, int if parameter.kind == "integer" else float)
        assert len(f"{value}".replace(".", "")) < 13  # prints short


@given(ranges())
def test_both_bounds_are_reached_without_a_step(parameter):
    assume(parameter.step is None)
    assert parameter.value(0) == parameter.low
    assert parameter.value(parameter.levels - 1) == parameter.high


@given(ranges(), st.floats(-1e7, 1e7) | st.sampled_from([1e308, -1e308]))
def test_nearest_level_of_any_number(parameter, number):
    level = parameter.level(number)
    assert 0 <= level < parameter.levels
    if number <= parameter.low:
        assert level == 0
    if number >= parameter.high:
        assert level == parameter.levels - 1
    if parameter.scale == "linear":
        distance = abs(parameter.value(level) - number)
        for other in (level - 1, level + 1):
            if 0 <= other < parameter.levels:
                slack = 1e-5 * max(1, abs(number), abs(parameter.low), abs(parameter.high))
                assert distance <= abs(parameter.value(other) - number) + slack


@given(parameters)
def test_unit_and_back(parameter):
    for level in some_levels(parameter):
        place = parameter.unit(level)
        assert 0 <= place <= 1
        assert parameter.from_unit(place) == level


@given(parameters, st.floats(-1, 2))
def test_every_place_of_the_unit_interval_is_a_level(parameter, place):
    level = parameter.from_unit(place)
    assert 0 <= level < parameter.levels
    assert parameter.from_unit(0) == 0
    assert parameter.from_unit(1) == parameter.levels - 1


def test_uniform_places_give_uniform_levels():
    parameter = Parameter(name="x", kind="integer", low=1, high=7)
    found = [parameter.from_unit((k + 0.5) / 7000) for k in range(7000)]
    assert {level: found.count(level) for level in range(7)} == dict.fromkeys(range(7), 1000)


def test_log_integers_give_each_decade_the_same_room():
    parameter = Parameter(name="rank", kind="integer", low=1, high=1000, scale="log")
    found = [parameter.value(parameter.from_unit((k + 0.5) / 3000)) for k in range(3000)]
    assert parameter.levels == 1000
    assert abs(sum(value < 10 for value in found) - 1000) < 50
    assert abs(sum(value > 100 for value in found) - 1000) < 50


@pytest.mark.parametrize("level", [-1, 5])
def test_level_outside(level):
    with pytest.raises(IndexError, match=rf"`0 <= level < 5` must hold for 'x', but got {level}"):
        Parameter(name="x", kind="integer", low=1, high=5).value(level)


@pytest.mark.parametrize("value", [math.nan, math.inf, "nan", "-inf", "fast"])
def test_no_number(value):
    with pytest.raises(ValueError):
        Parameter(name="x", kind="real", low=0, high=1).level(value)


def test_unknown_category():
    with pytest.raises(ValueError, match=r"'x' must be one of \['a', 'b'\], but got 'c'"):
        Parameter(name="x", kind="categorical", values=("a", "b")).level("c")


@pytest.mark.parametrize("text", ["1e-4", "0.0001", "1E-04", 0.0001])
def test_discrete_number_in_any_writing(text):
    parameter = Parameter(name="dropout", kind="discrete", values=(0.0, 1e-4, 1e-3))
    assert parameter.level(text) == 1
    assert parameter.contains(text)


def test_contains():
    real = Parameter(name="x", kind="real", low=0, high=1)
    assert all(map(real.contains, (0, 1, 0.123456789, "1e-9")))
    assert not any(map(real.contains, (-1e-9, 1.1, math.nan, math.inf, "nan", "fast", "")))
    listed = Parameter(name="x", kind="discrete", values=(4, 8))
    assert not any(map(listed.contains, (5, "5", "fast", math.nan, 8.5)))
    named = Parameter(name="x", kind="categorical", values=("a", 1))
    assert all(map(named.contains, ("a", 1, "1")))
    assert not any(map(named.contains, ("b", 2)))


BAD = [
    ({"kind": "real", "low": 1, "high": 1e-3}, "`low <= high` must hold for 'x', but got low=1.0, high=0.001"),
    ({"kind": "real", "low": 0, "high": 1, "scale": "log"}, "`low > 0` must hold on a log scale, but got low=0.0"),
    ({"kind": "real", "low": 0, "high": 1, "step": 0}, "`step > 0` must hold, but got step=0.0"),
    ({"kind": "real", "low": 0, "high": 1, "step": 1.5}, "`step` must be at most `high` - `low`, 1, or 'x' would always be 0, but got step=1.5"),
    ({"kind": "integer", "low": 1, "high": 4, "step": 4}, "`step` must be at most `high` - `low`, 3"),
    ({"kind": "real", "low": 1e-5, "high": 1e-4, "scale": "log", "step": 2}, "`step` must be at most `high` - `low` in log10, 1,"),
    ({"kind": "real", "low": 0, "high": 1, "step": math.nan}, "`step > 0` must hold, but got step=nan"),
    ({"kind": "real", "low": 0, "high": math.inf}, "must be finite, but got low=0.0, high=inf"),
    ({"kind": "real", "low": math.nan, "high": 1}, "must be finite"),
    ({"kind": "real", "low": 0}, "needs `low` and `high`"),
    ({"kind": "real", "low": 0, "high": 1, "values": (1, 2)}, "`values` does not belong to the real parameter"),
    ({"kind": "integer", "low": 0.5, "high": 4}, "an integer parameter has whole bounds, but got {'low': 0.5}"),
    ({"kind": "integer", "low": 0, "high": 4, "step": 0.5}, "an integer parameter has whole bounds, but got {'step': 0.5}"),
    ({"kind": "real", "low": 0, "high": 1, "default": 2}, "`low <= default <= high` must hold, but got default=2"),
    ({"kind": "real", "low": 0, "high": 1, "default": math.nan}, "`low <= default <= high` must hold, but got default=nan"),
    ({"kind": "real", "low": 0, "high": 1, "default": "fast"}, "`default` must be a number, but got 'fast'"),
    ({"kind": "discrete"}, "a discrete parameter needs `values`"),
    ({"kind": "categorical", "values": ()}, "a categorical parameter needs `values`"),
    ({"kind": "discrete", "values": (1, 2), "low": 0}, "`low`, `high` and `step` do not belong to the discrete parameter"),
    ({"kind": "discrete", "values": (2, 1)}, "`values` of a discrete parameter must rise, but got [2, 1]"),
    ({"kind": "discrete", "values": (1, 1)}, "`values` must differ, but got [1, 1]"),
    ({"kind": "discrete", "values": (1, 1.0)}, "`values` must differ, but got [1, 1.0]"),
    ({"kind": "discrete", "values": (1, "a")}, "must be finite numbers, but 'x' has ['a']"),
    ({"kind": "discrete", "values": (1, math.inf)}, "must be finite numbers, but 'x' has [inf]"),
    ({"kind": "categorical", "values": ("a", "a")}, "`values` must differ"),
    ({"kind": "categorical", "values": ("a", "b"), "default": "c"}, "`default` must be one of ['a', 'b'], but got 'c'"),
    # Levels that cannot be told from each other would spend trials on nothing.
    ({"kind": "real", "low": 1, "high": 1.0000001}, "too close"),
    ({"kind": "real", "low": 1, "high": 1 + 1e-12, "scale": "log"}, "too close"),
    ({"kind": "real", "low": 0, "high": 5e-324}, "too close"),
    ({"kind": "real", "low": 0, "high": 1, "step": 1e-300}, "too close"),
    ({"kind": "real", "low": 1e6, "high": 1e6 + 1}, "too close"),
    ({"kind": "real", "low": 0, "high": 2e-309}, "too close"),
    ({"kind": "real", "low": -1e308, "high": 1e308}, "too far"),
    ({"kind": "integer", "low": 1, "high": 10, "scale": "log", "step": 0.05}, "too close"),
]  # fmt: skip


@pytest.mark.parametrize(("given_keys", "words"), BAD)
def test_wrong_parameters_are_refused_with_rule_and_value(given_keys, words):
    with pytest.raises(ValidationError) as caught:
        Parameter(name="x", **given_keys)
    assert words in str(caught.value)


def test_all_problems_of_a_parameter_at_once():
    with pytest.raises(ValidationError) as caught:
        Parameter(name="x", kind="integer", low=2.5, high=1, step=-1, scale="log", default=7)
    for words in ("`low <= high`", "`step > 0`", "whole bounds", "`low <= default <= high`"):
        assert words in str(caught.value)


def test_unknown_key():
    with pytest.raises(ValidationError, match="lo\n"):
        Parameter(name="x", kind="real", lo=0, high=1)


# Spaces.

spaces = st.lists(parameters, min_size=1, max_size=5).map(
    lambda found: Space(parameters=tuple(p.model_copy(update={"name": f"p{k}"}) for k, p in enumerate(found)))
)


@given(spaces, st.randoms())
def test_encode_and_decode(space, chance):
    levels = tuple(chance.randrange(p.levels) for p in space.parameters)
    assignment = space.decode(levels)
    assert space.encode(assignment) == levels
    assert space.encode({name: str(value) for name, value in assignment.items()}) == levels
    assert space.from_unit(space.to_unit(levels)) == levels
    assert space.contains(assignment)
    assert space.snap(assignment) == assignment
    assert list(assignment) == space.names


@given(spaces)
def test_a_space_survives_json(space):
    assert Space.model_validate_json(space.model_dump_json()) == space


def test_size_default_and_lookup():
    space = tribes2024()
    assert space.size == 8 * 5 * 64 * 301
    assert space.default() == {"rank": 8, "dropout": 0.1, "alpha": 32, "learning_rate": 1e-5}
    assert space["alpha"].high == 64
    half = Space(parameters=(*space.parameters, Parameter(name="x", kind="real", low=0, high=1)))
    assert half.default() is None


def test_encode_names_what_is_missing():
    with pytest.raises(KeyError, match=r"lacks \['dropout', 'alpha'\]"):
        tribes2024().encode({"rank": 8, "learning_rate": 1e-5})
    assert not tribes2024().contains({"rank": 8})


def test_wrong_spaces():
    one = Parameter(name="x", kind="real", low=0, high=1)
    with pytest.raises(ValidationError, match=r"duplicates are \['x'\]"):
        Space(parameters=(one, one))
    with pytest.raises(ValidationError, match="at least one parameter"):
        Space(parameters=())


def test_tribes2024_is_table_3():
    """Tribes et al. 2024, Table 3: rank 2^(r+1) for r in 1..8; dropout 0 and 10^(d-6) for d in 2..5; default settings."""
    space = tribes2024()
    assert space["rank"].values == tuple(2 ** (r + 1) for r in range(1, 9))
    assert space["dropout"].values == (0.0, *(tidy(10.0 ** (d - 6)) for d in range(2, 6)))
    assert (space["learning_rate"].value(0), space["learning_rate"].value(300)) == (1e-6, 1e-3)
    assert space["learning_rate"].value(100) == 1e-5


def test_davouse2024_has_five_variables():
    assert davouse2024().names == ["learning_rate", "rank", "alpha", "dropout", "weight_decay"]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_come_back_from_every_level(name):
    for parameter in PRESETS[name]().parameters:
        for level in range(parameter.levels):
            assert parameter.level(str(parameter.value(level))) == level
        assert parameter.contains(parameter.default)


@given(st.floats(**finite))
def test_tidy_has_six_digits_and_is_stable(value):
    assert tidy(tidy(value)) == tidy(value)
    assert math.isclose(tidy(value), value, rel_tol=1e-5, abs_tol=1e-300)


@pytest.mark.parametrize(
    ("low", "high", "scale"),
    [
        (0, 2**63 - 1, "linear"),
        (-(2**63), 0, "linear"),
        (1, 2**63 - 1, "log"),
        (-(2**53), 2**53, "linear"),
        (0, 1e300, "linear"),
    ],
)
def test_integers_that_floats_cannot_tell_apart_are_refused(low, high, scale):
    with pytest.raises(ValidationError, match=r"within -2\^53"):
        Parameter(name="a", kind="integer", low=low, high=high, scale=scale)


def test_the_widest_range_of_integers_is_exact():
    widest = Parameter(name="a", kind="integer", low=0, high=2**53)
    top = widest.levels - 1
    assert [widest.value(level) for level in (0, 1, top - 1, top)] == [0, 1, 2**53 - 1, 2**53]
    assert [widest.level(2**53 - 1), widest.level(2**53)] == [top - 1, top]
