"""The expected objective: a lucky loss does not win, and repeated trials count."""

import random

import pytest

from retune.selection.choice import select
from retune.selection.expected import expected
from retune.space import Parameter, Space
from retune.study import Objective, Select
from tests.selection.test_choice import bench, trial

SPACE = Space(
    parameters=(Parameter(name="learning_rate", kind="real", low=1e-5, high=1e-2, scale="log", default=1e-4),)
)


def valley(noise, lucky=None, count=30):
    """Trials along a valley whose bottom is in the middle; one far from it may have been lucky."""
    rng, found = random.Random(1), []
    for number in range(1, count + 1):
        level = round((number - 1) * 300 / (count - 1))
        loss = 1 + ((level - 150) / 150) ** 2 + noise * rng.gauss(0, 1)
        assignment = SPACE.decode((level,))
        found.append(trial(number, loss if number != lucky else 0.9, assignment=assignment))
    return found


def test_a_lucky_trial_far_from_the_valley_does_not_win():
    trials = valley(0.03, lucky=8)
    assert select(trials, [], Objective(), Select(), []).chosen == "trial-008"
    chosen = select(trials, [], Objective(), Select(), [], space=SPACE)
    assert chosen.chosen in {f"trial-{k:03d}" for k in range(12, 20)}
    assert "expected" in chosen.rule
    assert "expected" in chosen.why
    assert chosen.ranking[0] == chosen.chosen


def test_an_order_of_tasks_and_the_objective_says_that_the_expected_one_counts():
    trials = valley(0.03, lucky=8)
    rule = Select(rule="lexicographic", order=["objective"])
    benches = [bench(trial.number, "mmlu", 0.5) for trial in trials]
    chosen = select(trials, benches, Objective(), rule, ["mmlu"], space=SPACE)
    assert chosen.chosen != "trial-008"
    assert "the best by expected validation_loss" in chosen.rule
    assert "It also has the lowest expected validation_loss" in chosen.why
    assert "(measured" in chosen.why


@pytest.mark.parametrize("goal", ["minimize", "maximize"])
def test_expected_values_are_in_the_objectives_own_unit(goal):
    sign = 1 if goal == "minimize" else -1
    trials = [
        t.model_copy(update={"values": {"validation_loss": sign * t.values["validation_loss"]}})
        for t in valley(0.01)
    ]
    found = expected(trials, Objective(goal=goal), SPACE)
    for t in trials:
        assert found[t.trial] == pytest.approx(t.values["validation_loss"], abs=0.08)


def test_repeats_of_a_few_settings_decide_by_their_mean():
    """With fewer than five settings there is no model."""
    pair = valley(0.0, count=2)
    low, high = pair[0].values["validation_loss"] - 0.1, pair[1].values["validation_loss"]
    pair[0] = pair[0].model_copy(update={"values": {"validation_loss": low}})
    repeats = [
        pair[0].model_copy(
            update={
                "trial": f"{pair[0].trial}-seed-{k}", "role": "repeat", "seed": k,
                "values": {"validation_loss": high + 1},
            }
        )
        for k in (1, 2)
    ]  # fmt: skip
    assert select(pair, [], Objective(), Select(), [], space=SPACE).chosen == pair[0].trial
    assert select([*pair, *repeats], [], Objective(), Select(), [], space=SPACE).chosen == pair[1].trial


def test_only_a_trial_that_still_has_its_adapter_is_chosen():
    trials = valley(0.01)
    first = select(trials, [], Objective(), Select(), [], space=SPACE).chosen
    with_files = [
        t.model_copy(update={"adapter_uri": None if t.trial == first else f"a/{t.trial}"}) for t in trials
    ]
    assert select(with_files, [], Objective(), Select(), [], space=SPACE).chosen not in (None, first)
