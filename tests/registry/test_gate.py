"""The gate: every rule alone can keep the champion, and states its numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retune.records import GateRecord
from retune.registry.gate import ChampionFacts, beyond_noise, decide
from retune.selection.record import Spread
from retune.study import Gate, Objective
from tests.selection.test_choice import bench, trial

CHAMPION = ChampionFacts("3", 1.6, {"mmlu": 0.40}, "champion-digest")


def spread(sd: float) -> Spread:
    return Spread(trial="trial-002", mean=1.5, sd=sd, n=3, values=[1.5, 1.5 - sd, 1.5 + sd])


def decided(
    loss=1.5, score=0.42, base=3.0, champion=CHAMPION, gate=None, sd=None, goal="minimize", **changes
) -> GateRecord:
    given = {
        "gate": gate or Gate(),
        "objective": Objective(goal=goal),
        "model": "m",
        "version": "4",
        "challenger": trial(2, loss, adapter_digest="new"),
        "scores": [] if score is None else [bench(2, "mmlu", score)],
        "base": None if base is None else trial(0, base, "base"),
        "base_scores": [bench(0, "mmlu", 0.30)],
        "default": trial(1, 2.0, "default"),
        "champion": champion,
        "spread": None if sd is None else spread(sd),
        "study": "demo",
    }
    return decide(**{**given, **changes})


def outcomes(record: GateRecord) -> dict[str, str]:
    return {rule["rule"]: rule["outcome"] for rule in record.rules}


def test_a_better_challenger_is_promoted_with_all_reasons():
    record = decided(sd=0.02)
    assert record.decision == "promote"
    assert (record.model, record.challenger, record.champion, record.trial, record.study) == (
        "m",
        "4",
        "3",
        "trial-002",
        "demo",
    )
    assert outcomes(record) == {
        "completed": "passed",
        "better than base": "passed",
        "better than champion": "passed",
        "score on mmlu": "passed",
        "default setting": "noted",
        "spread over seeds": "noted",
    }
    texts = {rule["rule"]: rule["text"] for rule in record.rules}
    assert texts["better than champion"] == (
        "validation_loss 1.5 against 1.6 of champion version 3: gain +0.1, at least the spread over seeds, 0.02, is needed"
    )
    assert "mmlu 0.4200 (stderr 0.0100, n 100) against 0.4000 of champion version 3" in texts["score on mmlu"]
    assert GateRecord.model_validate_json(record.to_json()) == record


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"loss": None}, "completed"),
        ({"loss": math.nan}, "completed"),
        ({"base": 1.5}, "better than base"),
        ({"base": 1.4}, "better than base"),
        ({"base": None}, "better than base"),
        ({"base": math.inf}, "better than base"),
        ({"gate": Gate(min_gain_over_base=1.6)}, "better than base"),
        ({"loss": 1.6}, "better than champion"),
        ({"gate": Gate(min_gain_over_champion=0.11)}, "better than champion"),
        ({"sd": 0.11}, "better than champion"),
        ({"champion": ChampionFacts("3", None, {"mmlu": 0.4}, "x")}, "better than champion"),
        ({"score": 0.379}, "score on mmlu"),
        ({"score": None}, "score on mmlu"),
        ({"gate": Gate(max_score_loss=0), "score": 0.399}, "score on mmlu"),
        ({"champion": None, "score": 0.279}, "score on mmlu"),
        ({"goal": "maximize"}, "better than base"),
    ],
)
def test_each_rule_alone_keeps_the_champion(changes, rule):
    record = decided(**changes)
    assert record.decision == "keep"
    assert outcomes(record)[rule] == "failed"
    record.to_json()  # refuses NaN


def test_the_first_champion_needs_only_to_beat_the_base():
    record = decided(champion=None)
    assert record.decision == "promote"
    assert record.champion is None
    assert "better than champion" not in outcomes(record)


def test_the_same_adapter_is_neither_promoted_nor_kept():
    assert decided(champion=ChampionFacts("4", 1.5, {}, "new")).decision == "same"
    assert decided(champion=ChampionFacts("4", 1.5, {}, None)).decision == "keep"


def test_a_task_the_champion_never_had_is_compared_with_the_base():
    record = decided(
        scores=[bench(2, "mmlu", 0.42), bench(2, "bbh", 0.1)], base_scores=[bench(0, "bbh", 0.2)]
    )
    assert outcomes(record)["score on bbh"] == "failed"
    assert "untuned base" in next(rule["text"] for rule in record.rules if rule["rule"] == "score on bbh")


def test_worse_than_the_default_setting_is_noted_only():
    record = decided(loss=1.5, default=trial(1, 1.4, "default"))
    assert record.decision == "promote"
    assert "gain -0.1" in next(rule["text"] for rule in record.rules if rule["rule"] == "default setting")


@given(
    st.one_of(st.none(), st.floats(0.5, 4)), st.one_of(st.none(), st.floats(0, 1)), st.one_of(st.none(), st.floats(0.5, 4)),
    st.one_of(st.none(), st.floats(0, 1)), st.floats(0, 1), st.floats(0, 1),
)  # fmt: skip
def test_promotion_means_that_every_number_is_there_and_good_enough(loss, score, base, sd, least, most):
    gate = Gate(min_gain_over_base=least, min_gain_over_champion=least, max_score_loss=most)
    record = decided(loss, score, base, gate=gate, sd=sd)
    good = (
        loss is not None and base is not None and score is not None
        and base - loss >= max(least, sd or 0) and base > loss
        and 1.6 - loss >= max(least, sd or 0) and loss < 1.6
        and 0.4 - score <= most + 1e-12
    )  # fmt: skip
    assert (record.decision == "promote") == good
    record.to_json()


@pytest.mark.parametrize(
    ("sd", "loss", "beyond"), [(0.04, 1.5, True), (0.051, 1.5, False), (None, 1.5, False), (0.0, 1.59, True)]
)
def test_a_gain_of_twice_the_spread_over_every_reference_is_beyond_noise(sd, loss, beyond):
    """The champion has 1.6, so a loss of 1.5 gains 0.1 over it."""
    record = decided(sd=sd, loss=loss)
    assert record.decision == "promote"
    assert beyond_noise(record) is beyond
