"""Conditional parameters: what depends on another parameter stays at its default where its condition does not hold."""

import itertools

import numpy as np
import pytest
from pydantic import ValidationError

from retune import search
from retune.search import Objective, Observation
from retune.search.lattice import Lattice
from retune.space import Parameter, Space
from retune.suggestion.experiment import experiment_of, search_of

SPACE = Space(
    parameters=(
        Parameter(name="variant", kind="categorical", values=("lora", "rslora", "dora"), default="lora"),
        Parameter(
            name="init", kind="categorical", values=("default", "pissa"), default="default",
            when={"variant": ["lora", "rslora"]},
        ),
        Parameter(name="lora_plus_ratio", kind="discrete", values=(1, 4, 16), default=1, when={"init": "default"}),
        Parameter(name="learning_rate", kind="real", low=1e-5, high=1e-2, scale="log", step=0.5, default=1e-4),
    )
)  # fmt: skip


def distinct():
    ladders = [[p.value(k) for k in range(p.levels)] for p in SPACE.parameters]
    points = (dict(zip(SPACE.names, values, strict=True)) for values in itertools.product(*ladders))
    return {SPACE.encode(point) for point in points}


def loss(assignment):
    ranking = {"lora": 0.3, "rslora": 0.2, "dora": 0.0}
    place = SPACE["learning_rate"].unit(SPACE["learning_rate"].level(assignment["learning_rate"]))
    return ranking[assignment["variant"]] + (place - 0.5) ** 2 + 0.01 * assignment["lora_plus_ratio"]


def test_what_is_not_active_keeps_its_default():
    assert SPACE.settle((2, 1, 2, 3)) == (2, 0, 2, 3)
    assert SPACE.decode((2, 1, 2, 3))["init"] == "default"
    assert SPACE.decode((1, 1, 2, 3))["lora_plus_ratio"] == 1
    assert SPACE.active((2, 1, 2, 3)) == [True, False, True, True]
    assert SPACE.size == len(distinct()) == (2 * 3 + 2 + 3) * 7
    rows = np.array(list(itertools.product(range(3), range(2), range(3), range(7))))
    assert [tuple(row) for row in Lattice(SPACE).settled(rows).tolist()] == [
        SPACE.settle(r) for r in rows.tolist()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", sorted(set(search.ALGORITHMS) - {"soo", "bamsoo"}))
def test_every_point_of_a_conditional_space_is_tried_once(algorithm):
    history = []
    while len(history) < SPACE.size:
        for assignment in search.suggest(algorithm, SPACE, Objective(), {}, history, 11, 0):
            assert SPACE.decode(SPACE.encode(assignment)) == assignment
            history.append(
                Observation(
                    assignment, "completed", {"validation_loss": loss(assignment)}, number=len(history)
                )
            )
    assert {SPACE.encode(entry.assignment) for entry in history} == distinct()


def test_algorithms_that_cannot_say_so():
    for algorithm in ("soo", "bamsoo"):
        [problem] = search.validate(algorithm, SPACE, {})
        assert "takes none with `when`, but got ['init', 'lora_plus_ratio']" in problem
        assert "mads-global" in problem


def test_conditions_travel_through_katibs_message():
    message = experiment_of("e", "mads-global", SPACE, Objective(), {}, 3)
    assert search_of(message).space == SPACE


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ({"rank": [8]}, r"names discrete or categorical parameters before it, \['variant'\], but got 'rank'"),
        ({"variant": ["doro"]}, r"'variant' has \['lora', 'dora'\], but not \['doro'\]"),
        ({}, "`when` names parameters and their values"),
    ],
)
def test_a_wrong_condition_is_refused(when, words):
    with pytest.raises(ValidationError, match=words):
        Space(
            parameters=(
                Parameter(name="variant", kind="categorical", values=("lora", "dora"), default="lora"),
                Parameter(name="init", kind="categorical", values=("a", "b"), default="a", when=when),
            )
        )


def test_a_conditional_parameter_needs_a_default_on_its_grid():
    for default in (None, 1.5):
        with pytest.raises(ValidationError, match="needs a `default` on its grid"):
            Parameter(name="rank", kind="integer", low=1, high=4, default=default, when={"variant": ["lora"]})


def test_a_list_of_layers_is_one_category():
    targets = Parameter(
        name="target_modules",
        kind="categorical",
        values=["attention", ["q_proj", "v_proj"]],
        default=["q_proj", "v_proj"],
    )
    assert targets.values == ("attention", "q_proj,v_proj")
    assert targets.default == "q_proj,v_proj"
