"""Spaces and histories through Katib's messages and back."""

import math
import re
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retune import search
from retune.errors import InputError
from retune.search import Objective, Observation
from retune.space import davouse2024, tribes2024
from retune.study import Constraint
from retune.study import Objective as Goal
from retune.suggestion import messages as katib
from retune.suggestion.experiment import ISSUED, WARM, experiment_of, search_of, strings
from retune.suggestion.trials import history_of, trial_of

sys.path.insert(0, str(Path(__file__).parents[1] / "search"))
from retune.testing.spaces import spaces


def there_and_back(space, **more):
    wire = experiment_of("s", "nomad", space, Objective(), {}, 3, **more).SerializeToString()
    return search_of(katib.Experiment.FromString(wire))


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(space=spaces())
def test_a_space_comes_back_with_an_equal_lattice(space):
    found = there_and_back(space)
    back = found.space
    assert back.names == space.names
    for ours, theirs in zip(space.parameters, back.parameters, strict=True):
        assert theirs.levels == ours.levels
        some = {0, ours.levels - 1, *range(0, ours.levels, 1 + ours.levels // 50)}
        assert [theirs.value(k) for k in some] == [ours.value(k) for k in some]
        assert [theirs.unit(k) for k in some] == [ours.unit(k) for k in some]
    assert back.default() == space.default()
    top = back.decode([p.levels - 1 for p in back.parameters])
    texts = strings(found, top)
    assert {name: found.value(name, text) for name, text in texts.items()} == top


@pytest.mark.parametrize("space", [tribes2024(), davouse2024()])
def test_the_spaces_of_the_papers_come_back_equal(space):
    assert there_and_back(space).space == space


def test_an_observation_comes_back_equal():
    found = there_and_back(tribes2024())
    given_ = tribes2024().default()
    history = [
        Observation(given_, "completed", {"validation_loss": 1.2345678901234567, "x": math.inf}, "a", 4),
        Observation({**given_, "alpha": 3}, "failed", {}, "b", 5),
        Observation({**given_, "alpha": 4}, "running", {}, "c", 6),
        Observation({**given_, "alpha": 5}, "early_stopped", {"validation_loss": 2.0}, "d", 7),
        Observation({**given_, "alpha": 6}, "completed", {"validation_loss": 2.0}, "e", 1, True),
        Observation(
            {**given_, "alpha": 7},
            "early_stopped",
            {"validation_loss": 2.1},
            "f",
            8,
            rungs=((1 / 9, 2.3), (1 / 3, 2.1)),
        ),
    ]
    back = history_of(found, [trial_of(found, entry) for entry in history])
    assert sorted(back, key=lambda e: e.name) == history


def test_constraints_and_settings_come_back():
    limits = (Constraint(metric="peak_gpu_gib", max=79.5), Constraint(metric="accuracy", min=1e-3))
    objective = Objective("loss", "maximize", limits)
    found = search_of(experiment_of("s", "nomad", tribes2024(), objective, {"LH_SEARCH": 4}, 3, parallel=5))
    assert found.objective == objective
    assert found.settings == {"seed": "3", "LH_SEARCH": "4"}
    assert (found.algorithm, found.parallel) == ("nomad", 5)


def test_several_objectives_come_back():
    objective = Objective(
        "loss", "minimize", (), (Goal(metric="adapter_mib"), Goal(metric="accuracy", goal="maximize"))
    )
    message = experiment_of("s", "nomad", tribes2024(), objective, {}, 3)
    assert search_of(message).objective == objective
    assert list(message.spec.objective.additional_metric_names) == ["accuracy", "adapter_mib"]
    with pytest.raises(InputError, match="'lhs', 'nomad', 'retune-random'"):
        search_of(experiment_of("s", "tpe", tribes2024(), objective, {}, 3))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("adapter_mib", "`minimize metric` or `maximize metric`, but got 'adapter_mib'"),
        ("lower adapter_mib", "but got 'lower adapter_mib'"),
        ("minimize unheard", "a further objective's metric must be one of `additionalMetricNames`"),
        ("minimize validation_loss", "different metrics"),
    ],
)
def test_wrong_further_objectives_are_refused(text, words):
    message = experiment_of("s", "nomad", tribes2024(), Objective(), {}, 3)
    message.spec.objective.additional_metric_names.append("adapter_mib")
    message.spec.algorithm.algorithm_settings.add(name="further_objectives", value=text)
    with pytest.raises(InputError, match=re.escape(words)):
        search_of(message)


def double(low, high, step="", distribution=katib.UNIFORM, kind=katib.DOUBLE):
    experiment = experiment_of("s", "random", tribes2024(), Objective(), {}, 0)
    del experiment.spec.parameter_specs.parameters[:]
    settings_ = experiment.spec.algorithm.algorithm_settings
    for entry in [e for e in settings_ if e.name.startswith("default")]:
        settings_.remove(entry)
    spec = experiment.spec.parameter_specs.parameters.add(name="x", parameter_type=kind)
    feasible = spec.feasible_space
    feasible.min, feasible.max, feasible.step, feasible.distribution = low, high, step, distribution
    return search_of(experiment).space["x"]


def values(parameter):
    return [parameter.value(k) for k in range(parameter.levels)]


def test_a_step_counts_from_the_minimum():
    assert values(double("3", "10", "4", kind=katib.INT)) == [3, 7]
    assert values(double("0.1", "0.5", "0.1")) == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_a_step_on_a_log_scale_keeps_to_the_linear_grid():
    found = values(double("0.001", "0.1", "0.001", katib.LOG_UNIFORM))
    assert all(abs(v / 0.001 - round(v / 0.001)) < 1e-6 for v in found)
    assert (found[0], found[-1]) == (0.001, 0.1)
    low = [v for v in found if v <= 0.01]
    assert len(low) == 10, "where the grid is coarser than the scale, all of it"
    assert len(found) < 100, "where it is finer, only what the scale can tell apart"
    assert values(double("2", "64", "2", katib.LOG_UNIFORM, katib.INT))[:4] == [2, 4, 6, 8]


def test_normal_distributions_begin_at_their_mean():
    assert double("0", "10", "", katib.NORMAL).default == 5
    assert double("-4", "2", "", katib.NORMAL).default == -1
    assert double("0.001", "0.1", "", katib.LOG_NORMAL).default == pytest.approx(0.01)
    assert double("0", "10").default is None
    assert double("0.001", "0.1", "", katib.LOG_NORMAL).scale == "log"


@pytest.mark.parametrize("distribution", [katib.UNIFORM, katib.LOG_UNIFORM])
def test_a_step_that_leaves_one_value_is_refused(distribution):
    """Katib lets it through, and every trial would have the same value."""
    with pytest.raises(InputError, match=r"`step` must be at most .*would always be 1, but got step=5"):
        double("1", "4", "5", distribution)


def test_steps_that_cannot_be_counted_on_a_log_scale_are_refused():
    """Each of these once raised in the parser; Katib ends the Experiment when a call fails."""
    with pytest.raises(InputError, match="`step` is too small"):
        double("1", "10", "5e-324", katib.LOG_NORMAL)
    with pytest.raises(InputError, match="whole `step`"):
        double("8", "2147483648", "0.00001", katib.LOG_NORMAL, katib.INT)
    assert values(double("1e-300", "1e300", "1000", katib.LOG_UNIFORM))[0] == 1e-300


TEXTS = [
    "",
    "0",
    "1",
    "-1",
    "8",
    "0.5",
    "1e-5",
    "1e300",
    "1e-300",
    "-1e308",
    "5e-324",
    "NaN",
    "inf",
    "words",
    " 3 ",
    "1e400",
    "é",
]
text = st.sampled_from(TEXTS)


@st.composite
def experiments(draw):
    """An Experiment that Katib's webhook would let through, whatever stands in it."""
    message = katib.Experiment(name="s")
    spec = message.spec
    spec.objective.type, spec.objective.objective_metric_name = draw(st.sampled_from([1, 2])), "loss"
    spec.algorithm.algorithm_name = draw(st.sampled_from(["random", "lhs", "soo"]))
    for name in "xyz"[: draw(st.integers(1, 3))]:
        kind = draw(st.sampled_from([katib.DOUBLE, katib.INT, katib.DISCRETE, katib.CATEGORICAL]))
        parameter = spec.parameter_specs.parameters.add(name=name, parameter_type=kind)
        space = parameter.feasible_space
        space.distribution = draw(st.integers(0, 5))
        if kind in (katib.DOUBLE, katib.INT):
            space.min, space.max = sorted([draw(text), draw(text)], key=_magnitude)
            space.step = draw(st.sampled_from(["", "", *TEXTS]))
        else:
            space.list.extend(draw(st.lists(text, max_size=4)))
        if draw(st.booleans()):
            spec.algorithm.algorithm_settings.add(name=f"default.{name}", value=draw(text))
    for name in draw(
        st.lists(st.sampled_from(["seed", "constraints", "further_objectives", ISSUED, WARM]), max_size=1)
    ):
        value = draw(st.sampled_from([*TEXTS, "m <= 3", "minimize m", "3.0;1", "1 loss=2", "0.0.0"]))
        spec.algorithm.algorithm_settings.add(name=name, value=value)
    return message


def _magnitude(word):
    try:
        return float(word)
    except ValueError:
        return 0.0


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(message=experiments())
def test_any_experiment_is_refused_with_reasons_or_gets_its_points(message):
    """Any other error would end the Experiment without a reason, or be retried for ever."""
    try:
        found = search_of(message)
    except InputError:
        return
    history = history_of(found, [])
    points = search.suggest(found.algorithm, found.space, found.objective, found.settings, history, 3, 0)
    for point in points:
        texts = strings(found, point)
        back = {name: found.value(name, word) for name, word in texts.items()}
        assert found.space.encode(back) == found.space.encode(point)


@pytest.mark.parametrize("word", ['say "no"', "C:\\data", "two\nlines"])
@pytest.mark.parametrize("kind", [katib.CATEGORICAL, katib.DISCRETE])
def test_words_that_would_break_the_trials_template_are_refused(word, kind):
    experiment = experiment_of("s", "random", tribes2024(), Objective(), {}, 0)
    spec = experiment.spec.parameter_specs.parameters.add(name="x", parameter_type=kind)
    spec.feasible_space.list.extend(["good", word])
    with pytest.raises(InputError, match="without quotes, backslashes and line breaks"):
        search_of(experiment)


def test_text_that_is_no_number_is_refused_with_its_name():
    with pytest.raises(InputError, match="`max` of 'x' must be a finite number, but got 'ten'"):
        double("1", "ten")
    with pytest.raises(InputError, match="`step > 0`"):
        double("1", "2", "-1", katib.LOG_UNIFORM)


def test_numbers_of_other_programs_are_read():
    found = there_and_back(davouse2024())
    for text in ("1e-05", "0.00001", "1.0000000000000001e-05"):
        assert found.space.snap(
            {**davouse2024().default(), "learning_rate": found.value("learning_rate", text)}
        )
    assert found.value("rank", "8.0") == 8
