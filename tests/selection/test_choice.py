"""Ranking, Pareto front and choice; with the published tables of Tribes et al. 2024 as a check."""

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retune.errors import InputError
from retune.records import BenchRecord, TrialRecord
from retune.selection.choice import select
from retune.selection.ranking import candidates, pareto, rank
from retune.selection.record import Selection
from retune.study import Constraint, Objective, Select

LOSS = Objective()


def trial(number: int, loss: float | None, role: str = "search", **changes) -> TrialRecord:
    given = {
        "trial": f"trial-{number:03d}",
        "number": number,
        "role": role,
        "assignment": {} if role == "base" else {"rank": number},
        "seed": 0,
        "status": "failed" if loss is None else "completed",
        "values": {} if loss is None else {"validation_loss": loss},
    }
    return TrialRecord(**{**given, **changes})


def bench(number: int, task: str, score: float) -> BenchRecord:
    record = {"stderr": 0.01, "n": 100, "shots": 0, "protocol": "instruct-eval"}
    return BenchRecord(model=f"trial-{number:03d}", task=task, score=score, **record)


def study(losses: list[float | None], **scores: list[float | None]):
    """Trials 0 (base), 1 (default) and on; the scores of each task by trial number, None for not scored."""
    trials = [trial(n, loss, ("base", "default")[n] if n < 2 else "search") for n, loss in enumerate(losses)]
    benches = [
        bench(number, task, score)
        for task, row in scores.items()
        for number, score in enumerate(row)
        if score is not None
    ]
    return trials, benches


# Tribes et al. 2024, Table 4: rank by validation loss, MMLU, BBH, DROP, HumanEval, and whether the paper marks the
# model as Pareto optimal. The marks are over the four scores, among the twenty models of each table.
NOMAD = """
1 45.94 32.51 29.71 17.07 -    2 46.00 32.68 30.95 17.68 *    3 46.18 32.16 30.63 15.85 -    4 46.70 32.37 30.15 18.29 *
5 46.42 32.07 30.33 18.29 -    6 45.98 32.99 29.77 17.68 *    7 46.46 32.50 30.95 18.90 *    8 46.57 32.60 29.67 14.63 *
9 46.28 32.42 30.29 16.46 -   10 45.88 32.67 30.39 14.63 -   91 42.48 31.43 28.62 12.20 -   92 42.47 32.30 28.40 12.80 -
93 42.44 30.45 28.62 12.80 -  94 45.98 33.40 30.45 13.41 *   95 45.09 32.77 30.85 15.24 *   96 42.32 30.98 29.01 13.41 -
97 42.64 31.24 27.53 14.02 -  98 42.88 32.09 28.08 12.80 -   99 43.45 32.42 30.26 15.24 -  100 43.56 32.13 29.02 15.24 -
"""
TPE = """
1 46.56 32.41 30.26 14.63 *    2 46.23 34.43 30.15 14.02 *    3 46.28 32.86 29.28 16.46 *    4 46.40 32.27 29.77 15.85 *
5 45.94 32.83 30.58 14.02 *    6 45.84 33.49 30.25 16.46 *    7 46.13 32.30 29.72 14.63 -    8 46.06 32.90 30.34 15.85 *
9 45.91 32.78 30.77 15.24 *   10 45.49 33.03 29.23 15.24 -   91 43.16 32.02 28.91 14.63 -   92 43.10 32.38 29.79 15.85 -
93 43.27 31.54 29.26 14.02 -  94 43.46 31.55 28.80 14.02 -   95 43.42 31.65 28.94 14.63 -   96 42.81 32.05 29.23 14.02 -
97 43.01 31.45 32.41 14.02 -  98 42.86 32.00 32.94 14.63 *   99 46.20 32.04 32.78 15.85 *  100 46.05 31.24 28.89 14.02 -
"""


def table(text: str):
    cells = text.split()
    return [(int(r[0]), tuple(map(float, r[1:5])), r[5] == "*") for r in zip(*[iter(cells)] * 6, strict=True)]


@pytest.mark.parametrize("text", [NOMAD, TPE])
def test_pareto_marks_of_the_paper(text):
    rows = table(text)
    ours = {
        rank for (rank, _, _), optimal in zip(rows, pareto([s for _, s, _ in rows]), strict=True) if optimal
    }
    assert ours == {rank for rank, _, marked in rows if marked}


points = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=20)


@given(points)
def test_pareto_no_member_is_dominated_and_every_other_point_is(found):
    marks = pareto(found)
    front = [point for point, mark in zip(found, marks, strict=True) if mark]
    assert front

    def dominates(a, b):
        return a != b and all(x >= y for x, y in zip(a, b, strict=True))

    for point, mark in zip(found, marks, strict=True):
        assert mark == (not any(dominates(other, point) for other in found))
        assert mark or any(dominates(member, point) for member in front)


@given(points, st.randoms(use_true_random=False))
def test_pareto_does_not_depend_on_order(found, chance: random.Random):
    order = list(range(len(found)))
    chance.shuffle(order)
    shuffled = pareto([found[k] for k in order])
    assert [shuffled[order.index(k)] for k in range(len(found))] == pareto(found)


@given(points)
def test_pareto_keeps_its_marks_under_growing_maps(found):
    assert pareto([tuple(math.exp(v) for v in point) for point in found]) == pareto(found)


@settings(deadline=None)  # the first example imports scipy
@given(
    st.lists(st.one_of(st.none(), st.integers(0, 6).map(lambda k: 1 + k / 4)), min_size=3, max_size=9),
    st.data(),
)
def test_select_does_not_depend_on_order_and_never_takes_the_base(losses, data):
    score = st.one_of(st.none(), st.integers(0, 5).map(lambda k: k / 10))
    scores = {task: [data.draw(score) for _ in losses] for task in ("mmlu", "bbh")}
    trials, benches = study(losses, **scores)
    first = select(trials, benches, LOSS, Select(), ["mmlu", "bbh"])
    again = select(
        data.draw(st.permutations(trials)),
        data.draw(st.permutations(benches)),
        LOSS,
        Select(),
        ["mmlu", "bbh"],
    )
    assert again == first
    assert first.chosen != "trial-000"
    assert (first.chosen is None) == (first.pareto == [])
    if first.chosen:
        assert first.chosen in first.pareto
        best = max(first.row(name).mean_score for name in first.pareto)
        assert first.row(first.chosen).mean_score == pytest.approx(best)
    assert Selection.model_validate_json(first.to_json()) == first


def test_ranking_leaves_out_what_has_no_number():
    trials = [
        trial(1, 2.0),
        trial(2, None),
        trial(3, math.nan),
        trial(4, math.inf),
        trial(5, 1.0),
        trial(6, 1.0),
    ]
    assert [t.number for t in rank(trials, LOSS)] == [5, 6, 1]
    assert [t.number for t in rank(trials, Objective(goal="maximize"))] == [1, 5, 6]


def test_without_tasks_the_objective_alone_chooses():
    trials, _ = study([3.0, 2.0, 1.5, 1.6])
    selection = select(trials, [], LOSS, Select(), [])
    assert selection.chosen == "trial-002"
    assert selection.ranking == ["trial-002", "trial-003", "trial-001"]
    assert selection.row("trial-002").gain_over_base == pytest.approx(1.5)
    assert selection.row("trial-002").gain_over_default == pytest.approx(0.5)
    assert "lowest validation_loss" in selection.rule
    assert selection.findings == []


def test_weighted_takes_the_best_mean_and_not_the_best_loss():
    trials, benches = study([3, 2, 1.5, 1.6], mmlu=[0.2, 0.3, 0.3, 0.4], bbh=[0.2, 0.3, 0.4, 0.35])
    equal = select(trials, benches, LOSS, Select(), ["mmlu", "bbh"])
    assert equal.chosen == "trial-003"
    assert equal.pareto == ["trial-002", "trial-003"]
    weighted = select(trials, benches, LOSS, Select(weights={"bbh": 1}), ["mmlu", "bbh"])
    assert weighted.chosen == "trial-002"
    assert "bbh 1" in weighted.rule


def test_ties_go_to_the_objective_then_to_the_earlier_trial():
    trials, benches = study([3, 2, 1.5, 1.5], mmlu=[0.2, 0.4, 0.4, 0.4])
    assert select(trials, benches, LOSS, Select(), ["mmlu"]).chosen == "trial-002"


def test_lexicographic_compares_in_order():
    trials, benches = study([3, 2, 1.5, 1.4], mmlu=[0.2, 0.3, 0.4, 0.3], bbh=[0.2, 0.3, 0.3, 0.4])
    by_mmlu = Select(rule="lexicographic", order=["mmlu", "objective"])
    assert select(trials, benches, LOSS, by_mmlu, ["mmlu", "bbh"]).chosen == "trial-002"
    by_loss = Select(rule="lexicographic", order=["objective"])
    assert select(trials, benches, LOSS, by_loss, ["mmlu", "bbh"]).chosen == "trial-003"


def test_maximised_objectives_turn_round():
    trials, _ = study([0.2, 0.4, 0.5, 0.6])
    selection = select(trials, [], Objective(metric="validation_loss", goal="maximize"), Select(), [])
    assert selection.chosen == "trial-003"
    assert selection.row("trial-003").gain_over_base == pytest.approx(0.4)


def test_only_candidates_with_all_scores_can_be_chosen():
    trials, benches = study([3, 2, 1.5, 1.6], mmlu=[0.2, 0.3, 0.9, 0.4], bbh=[0.2, 0.3, None, 0.35])
    assert select(trials, benches, LOSS, Select(), ["mmlu", "bbh"]).chosen == "trial-003"
    nothing = select(trials, [], LOSS, Select(), ["mmlu", "bbh"])
    assert nothing.chosen is None
    assert any("no candidate was scored on all of mmlu, bbh" in finding for finding in nothing.findings)


def test_constraints_rule_out_what_breaks_them_or_did_not_measure_them():
    trials = [
        trial(1, 2.0, values={"validation_loss": 2.0, "adapter_mib": 5}),
        trial(2, 1.0, values={"validation_loss": 1.0, "adapter_mib": 50}),
        trial(3, 0.5),
        trial(4, 0.4, values={"validation_loss": 0.4, "adapter_mib": math.nan}),
    ]
    limit = [Constraint(metric="adapter_mib", max=10)]
    selection = select(trials, [], LOSS, Select(), [], limit)
    assert selection.chosen == "trial-001"
    assert [row.feasible for row in selection.rows] == [False, False, False, True]
    assert [t.number for t in candidates(trials, LOSS, [Constraint(metric="seconds", max=1)])] == [4, 3, 2, 1]


@pytest.mark.parametrize("weights", [{"mmlu": -1}, {"mmlu": 0}, {"mmlu": 2, "bbh": -1}])
def test_weights_that_weigh_nothing_are_refused(weights):
    trials, benches = study([3, 2, 1.5], mmlu=[0.2, 0.3, 0.4])
    with pytest.raises(InputError, match="weight"):
        select(trials, benches, LOSS, Select(weights=weights), ["mmlu"])


def test_spread_over_seeds_counts_the_setting_and_its_repeats():
    trials, _ = study([3, 2, 1.5])
    best = trials[2].assignment
    trials += [
        trial(10, 1.6, "repeat", assignment=best, seed=1),
        trial(11, 1.4, "repeat", assignment=best, seed=2),
    ]
    trials += [trial(12, None, "repeat", assignment=best, seed=3)]
    selection = select(trials, [], LOSS, Select(), [])
    spread = selection.spread["trial-002"]
    assert (spread.n, spread.mean, spread.sd) == (3, pytest.approx(1.5), pytest.approx(0.1))
    assert selection.spread_for("trial-001") == spread  # the widest that is known stands in
    assert select(trials[:3], [], LOSS, Select(), []).spread_for("trial-001") is None


def test_repeats_are_shown_but_never_chosen():
    trials, _ = study([3, 2, 1.5])
    trials.append(trial(10, 1.0, "repeat", assignment=trials[2].assignment, seed=1))
    selection = select(trials, [], LOSS, Select(), [])
    assert selection.chosen == "trial-002"
    assert selection.rows[0].trial == "trial-010"
    assert selection.rows[0].rank is None


def test_rank_correlation_of_loss_and_score():
    trials, benches = study(
        [4, 3, 2, 1], mmlu=[0.1, 0.2, 0.3, 0.4], bbh=[0.4, None, None, 0.1], drop=[0.2] * 4
    )
    found = select(trials, benches, LOSS, Select(), ["mmlu", "bbh", "drop"]).correlation
    assert found == {"mmlu": pytest.approx(-1)}  # two models of bbh and equal scores of drop tell nothing


@pytest.mark.parametrize(
    ("losses", "finding"),
    [
        ([1.5, 2, 1.5], "best is no better than the untuned base"),
        ([1.0, 2, 1.5], "best is no better than the untuned base"),
        ([3.0, 1, 1.5], "found nothing better than the default setting"),
        ([None, 2, 1.5], "the untuned base has no result"),
        ([3.0, None, None], "nothing can be chosen"),
    ],
)
def test_findings(losses, finding):
    trials, _ = study(losses)
    assert any(finding in found for found in select(trials, [], LOSS, Select(), []).findings)


def test_a_gain_within_the_spread_is_a_finding():
    trials, _ = study([3, 1.6, 1.5])
    trials += [trial(10, 1.9, "repeat", assignment=trials[2].assignment, seed=1)]
    assert any(
        "within the spread over seeds" in found for found in select(trials, [], LOSS, Select(), []).findings
    )


def test_old_records_with_unknown_fields_are_read():
    selection = select(*study([3, 2, 1.5]), LOSS, Select(), [])
    content = {**json.loads(selection.to_json()), "of_a_newer_writer": 1}
    assert Selection.model_validate(content).chosen == "trial-002"


def test_a_chosen_trial_that_is_no_better_than_the_base_is_a_finding():
    trials, benches = study([2, 3, 1.5, 2], mmlu=[0.2, 0.1, 0.3, 0.4])
    selection = select(trials, benches, LOSS, Select(), ["mmlu"])
    assert selection.chosen == "trial-003"
    assert any(
        "trial-003 has no better validation_loss than the untuned base" in f for f in selection.findings
    )


@pytest.mark.parametrize(("score", "luck"), [(0.31, True), (0.6, False)])
def test_a_choice_that_scores_within_their_error_made_is_a_finding(score, luck):
    trials, benches = study([3, 2.5, 1.5, 2], mmlu=[0.2, 0.1, 0.3, score])
    selection = select(trials, benches, LOSS, Select(), ["mmlu"])
    assert selection.chosen == "trial-003"
    assert any("may be luck" in finding for finding in selection.findings) == luck


def test_trials_on_a_part_of_the_data_are_never_chosen_and_their_order_is_compared():
    """Trial 5 is best on the part, and was not trained on all data; trial 4 was stopped early, at a low loss."""
    trials, _ = study([3.0, 2.0, 1.6, 1.8])
    on_part = [
        trial(n, loss, "proxy", trial=f"trial-{n:03d}-proxy", proxy={"records": 10, "of": 100})
        for n, loss in ((1, 2.9), (2, 2.2), (3, 2.5), (5, 0.1))
    ]
    stopped = trial(4, 0.2, status="early_stopped")
    found = select([*trials, *on_part, stopped], [], LOSS, Select(), [])
    assert found.chosen == "trial-002"
    assert found.ranking == ["trial-002", "trial-003", "trial-001"]
    assert {row.trial for row in found.rows} == {"trial-000", "trial-001", "trial-002", "trial-003"}
    assert found.proxy_pairs == {"trial-001": (2.9, 2.0), "trial-002": (2.2, 1.6), "trial-003": (2.5, 1.8)}
    assert (found.proxy.n, found.proxy.spearman) == (3, pytest.approx(1.0))
    assert any(
        "10 of 100 records" in text and "correlation of the validation_loss is 1.00" in text
        for text in found.findings
    )
    assert any("1 of 9 trials were stopped early" in text for text in found.findings)
    read = Selection.model_validate_json(found.to_json())
    assert read.proxy == found.proxy
    plain = select(trials, [], LOSS, Select(), [])
    assert not {"proxy", "proxy_pairs"} & json.loads(plain.to_json()).keys()


def test_too_few_settings_on_both_are_said_to_be_too_few():
    trials, _ = study([3.0, 2.0])
    part = trial(1, 2.9, "proxy", trial="trial-001-proxy", proxy={"records": 10, "of": 100})
    found = select([*trials, part], [], LOSS, Select(), [])
    assert found.proxy is None
    assert any("too few" in text for text in found.findings)
