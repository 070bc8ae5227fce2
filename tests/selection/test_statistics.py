"""Intervals and paired tests: against values worked out by hand, against SciPy, and as properties."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from retune.errors import InputError
from retune.evaluation.tasks import bbh, mmlu
from retune.evaluation.tasks.question import Question
from retune.records import BenchRecord
from retune.selection.statistics import (
    compare,
    compare_means,
    has_answers,
    holm,
    interval,
    mcnemar,
    mismatches,
    wilson,
)

AVERAGES = {"mmlu": mmlu.average, "bbh": bbh.average}


def record(right, task="mmlu", model="a", group=lambda k: "anatomy", **changes) -> BenchRecord:
    """A record as `bench.run` writes it: the score is the task's own average of its answers."""
    right = [bool(one) for one in right]
    questions = [Question(f"{group(k)}/{k}", group(k), "", (), "", "A") for k in range(len(right))]
    score = AVERAGES[task](questions, right)
    answers = [
        {"id": q.id, "prompt": f"p{q.id}", "shots": 5, "prediction": "A", "right": one}
        for q, one in zip(questions, right, strict=True)
    ]
    given = {"score": score.value, "stderr": score.stderr, "n": len(right), "answers": answers}
    return BenchRecord(
        model=model, task=task, shots=5, protocol="instruct-eval", groups=score.groups, **{**given, **changes}
    )


def thirds(k: int) -> str:
    """Three groups of very different sizes."""
    return "snarks" if k < 3 else "navigate" if k < 10 else "dyck"


answers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)
quick = settings(deadline=None, max_examples=50)  # the first example imports NumPy


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (0, 10, 0.0, 1.959964**2 / (10 + 1.959964**2)),  # by hand: the root is z²/(n + z²)
        (10, 10, 10 / (10 + 1.959964**2), 1.0),
        (8, 10, 0.490162, 0.943318),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (15, 148, 0.0624, 0.1605),
    ],
)
def test_wilson_known_values(right, n, low, high):
    assert wilson(right, n) == pytest.approx((low, high), abs=6e-5)


@quick
@given(
    st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999)
)
def test_wilson_is_scipys(pair, level):
    right, n = pair
    expected = stats.binomtest(right, n).proportion_ci(level, method="wilson")
    low, high = wilson(right, n, level)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert low - 1e-12 <= right / n <= high + 1e-12


def test_wilson_refuses_what_is_no_share():
    for right, n in ((-1, 3), (4, 3), (0, 0)):
        with pytest.raises(ValueError, match="0 <= right <= n"):
            wilson(right, n)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (3, 0, 0.25),  # two of the eight equally likely outcomes
        (1, 6, 16 / 128),
        (5, 5, 1.0),
        (121, 59, 4.43445e-06),  # the example in the documentation of statsmodels' mcnemar
    ],
)
def test_mcnemar_known_values(first, second, p):
    assert mcnemar(first, second) == pytest.approx(p, rel=1e-6)


@quick
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_binomial_test(first, second):
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-6)
    assert mcnemar(first, second) == mcnemar(second, first)


def test_mcnemar_of_many_questions_is_no_overflow():
    assert mcnemar(14042, 0) == 0.0
    assert mcnemar(2200, 2000) == pytest.approx(stats.binomtest(2000, 4200).pvalue, rel=1e-6)


def test_holm_known_values():
    assert holm([0.01, 0.04, 0.03, None]) == [
        pytest.approx(0.03),
        pytest.approx(0.06),
        pytest.approx(0.06),
        None,
    ]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_never_lowers(values):
    adjusted = holm(values)
    assert all(a >= p for a, p in zip(adjusted, values, strict=True))
    assert all(
        a <= b for (p, a), (q, b) in itertools.product(zip(values, adjusted, strict=True), repeat=2) if p < q
    )


@quick
@given(answers)
def test_a_difference_turns_its_sign_with_the_order_of_the_models(pairs):
    for task, group in (("mmlu", thirds), ("bbh", thirds)):
        a = record([one for one, _ in pairs], task, "a", group)
        b = record([other for _, other in pairs], task, "b", group)
        there, back = compare(a, b), compare(b, a)
        assert there.difference == pytest.approx(a.score - b.score, abs=1e-12)
        assert back.difference == -there.difference
        assert (there.first_only, there.second_only) == (back.second_only, back.first_only)
        assert there.p == pytest.approx(back.p, abs=0.02)
        assert there.low <= there.difference + 1e-12
        assert there.high >= there.difference - 1e-12
        assert 0 < there.p <= 1
        assert there.n == len(pairs)
        assert compare(a, b) == there  # seeded


def test_the_same_answers_are_no_difference():
    found = compare(record([1, 0, 1]), record([1, 0, 1], model="b"))
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1.0)


def test_a_share_is_tested_by_mcnemar_and_its_interval_is_the_paired_bootstraps():
    chance = random.Random(1)
    a = [chance.random() < 0.5 for _ in range(800)]
    b = [not one if chance.random() < 0.2 else one for one in a]
    found = compare(record(a), record(b, model="b"))
    wins = sum(x and not y for x, y in zip(a, b, strict=True))
    losses = sum(y and not x for x, y in zip(a, b, strict=True))
    assert found.test == "McNemar exact"
    assert found.p == mcnemar(wins, losses)
    differences = np.array(a, float) - np.array(b, float)
    naive = stats.bootstrap((differences,), np.mean, n_resamples=5000, method="percentile", rng=3)
    assert (found.low, found.high) == pytest.approx(tuple(naive.confidence_interval), abs=0.003)
    half = 1.96 * differences.std() / math.sqrt(800)
    assert (found.low, found.high) == pytest.approx(
        (found.difference - half, found.difference + half), abs=0.003
    )


def test_a_macro_average_is_resampled_within_its_groups():
    """BBH's score is the mean of its tasks: one question of the small task weighs more than one of the large."""
    sizes = {"snarks": 4, "dyck": 400}
    names = [name for name, size in sizes.items() for _ in range(size)]
    a = record([name == "snarks" or k % 2 for k, name in enumerate(names)], "bbh", "a", names.__getitem__)
    b = record([k % 2 for k, _ in enumerate(names)], "bbh", "b", names.__getitem__)
    found = compare(a, b)
    assert found.difference == pytest.approx(0.25)  # half of the small task, which is half of the score
    assert found.test == "sign flips"
    assert found.p == pytest.approx(0.5, abs=0.02)  # two of four equally likely signs of two questions
    assert found.low == pytest.approx(0.0)
    assert found.high == pytest.approx(0.5)


def test_sign_flips_agree_with_all_flips_written_out():
    # 2 of 3, and 5 of 7 questions of two groups, each of which is half the score
    weights = [1 / 6] * 2 + [1 / 14] * 5
    signs = [1, 1, 1, 1, 1, -1, 1]
    observed = abs(sum(w * s for w, s in zip(weights, signs, strict=True)))
    leads = [
        abs(sum(w * s for w, s in zip(weights, flips, strict=True)))
        for flips in itertools.product((-1, 1), repeat=7)
    ]
    exact = sum(lead >= observed - 1e-12 for lead in leads) / len(leads)
    a = record([1, 1, 0, 1, 1, 1, 0, 1, 0, 0], "bbh", "a", lambda k: "snarks" if k < 3 else "navigate")
    b = record([0, 0, 0, 0, 0, 0, 1, 0, 0, 0], "bbh", "b", lambda k: "snarks" if k < 3 else "navigate")
    assert compare(a, b).difference == pytest.approx(observed)
    assert compare(a, b).p == pytest.approx(exact, abs=0.015)


def test_a_mean_over_tasks_resamples_all_of_them():
    chance = random.Random(2)
    rows = [[chance.random() < share for _ in range(300)] for share in (0.5, 0.6, 0.5, 0.4)]
    first = [record(rows[0]), record(rows[1], "bbh", "a", thirds)]
    second = [record(rows[2], model="b"), record(rows[3], "bbh", "b", thirds)]
    found = compare_means(list(zip((3.0, 1.0), first, second, strict=True)))
    lead = 0.75 * (first[0].score - second[0].score) + 0.25 * (first[1].score - second[1].score)
    assert found.difference == pytest.approx(lead)
    assert found.low < lead < found.high
    assert found.n == 600
    single = compare_means([(3.0, first[0], second[0])])
    assert single == compare(first[0], second[0])  # one task: the weight does not matter


@pytest.mark.parametrize("discordant", [1, 5, 6, 17, 100, 501])
def test_noise_is_called_a_difference_in_at_most_five_of_a_hundred_cases(discordant):
    coins = stats.binom(discordant, 0.5)
    alarms = [wins for wins in range(discordant + 1) if mcnemar(wins, discordant - wins) < 0.05]
    assert sum(coins.pmf(wins) for wins in alarms) <= 0.05


def test_ten_points_on_three_hundred_questions_are_mostly_found():
    """Because the test is paired: by the standard errors alone, fewer than half as many would be found."""
    rng = np.random.default_rng(7)
    paired, unpaired = [], []
    for _ in range(150):
        ease = rng.choice([0.05, 0.95], 300)  # what is easy for one model is easy for the other
        a, b = (record(rng.random(300) < np.clip(ease + shift, 0, 1)) for shift in (0.1, 0))
        paired.append(compare(a, b).p < 0.05)
        bare = [one.model_copy(update={"answers": []}) for one in (a, b)]
        unpaired.append(compare(*bare).p < 0.05)
    assert np.mean(paired) > 0.6
    assert np.mean(unpaired) < np.mean(paired) / 2


@pytest.mark.slow
def test_the_paired_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(11)
    inside = []
    for _ in range(300):
        draws = rng.choice(4, 400, p=[0.4, 0.3, 0.2, 0.1])  # both right, both wrong, first only, second only
        a, b = np.isin(draws, (0, 2)), np.isin(draws, (0, 3))
        found = compare(record(a), record(b, model="b"))
        inside.append(found.low <= 0.1 <= found.high)
    assert 0.92 <= np.mean(inside) <= 0.98


def test_intervals_of_one_score():
    assert interval(record([1] * 8 + [0] * 2)) == pytest.approx(wilson(8, 10))
    macro = record([1, 0, 1] * 20, "bbh", "a", thirds)
    low, high = interval(macro)
    assert low < macro.score < high
    bare = record([1] * 8 + [0] * 2, answers=[])
    assert interval(bare) == pytest.approx((0.8 - 1.96 * bare.stderr, 1.0), abs=1e-4)
    assert interval(record([1], answers=[], n=0, score=0.4)) is None


def test_without_answers_the_test_is_the_careful_one_and_without_n_there_is_none():
    first = record([1] * 70 + [0] * 30, answers=[])
    second = record([1] * 60 + [0] * 40, model="b", answers=[])
    found = compare(first, second)
    spread = math.hypot(first.stderr, second.stderr)
    assert (found.test, found.paired, found.n) == ("unpaired normal", False, 100)
    assert found.p == pytest.approx(2 * stats.norm.sf(0.1 / spread))
    assert (found.low, found.high) == pytest.approx((0.1 - 1.96 * spread, 0.1 + 1.96 * spread), abs=1e-4)
    unknown = compare(first, second.model_copy(update={"n": 0}))
    assert (unknown.test, unknown.p, unknown.low) == ("none", None, None)
    all_or_nothing = compare(record([1] * 3, answers=[]), record([0] * 3, answers=[]))
    assert 0 < all_or_nothing.p < 0.05


def graded(grades: list[float], model: str, samples: int | None = None) -> BenchRecord:
    """A record whose answers have a grade (F1), or as many right ones of several samples."""
    found = record([grade == 1 for grade in grades], "mmlu", model, score=float(np.mean(grades)))
    for answer, grade in zip(found.answers, grades, strict=True):
        if samples is None:
            answer["score"] = grade
        else:
            answer |= {"passed": round(grade * samples), "predictions": ["x"] * samples}
    return found


@pytest.mark.parametrize("samples", [None, 4])
def test_grades_between_right_and_wrong_are_resampled_and_flipped(samples):
    rng = np.random.default_rng(4)
    ours = [float(x) for x in rng.choice([0, 0.25, 0.5, 1], 300)]
    theirs = [max(0.0, x - 0.25) if rng.random() < 0.3 else x for x in ours]
    a, b = graded(ours, "a", samples), graded([round(4 * x) / 4 for x in theirs], "b", samples)
    found = compare(a, b)
    differences = np.array(ours) - np.array(theirs)
    assert found.paired
    assert found.test == "sign flips"
    assert found.difference == pytest.approx(differences.mean())
    assert (found.low, found.high) == pytest.approx(
        tuple(
            stats.bootstrap(
                (differences,), np.mean, n_resamples=4000, method="percentile", rng=1
            ).confidence_interval
        ),
        abs=0.004,
    )
    assert found.p == pytest.approx(1 / 10_001)  # all differences point one way
    assert found.second_only == 0
    low, high = interval(a)
    assert low < a.score < high


def test_answers_that_do_not_make_up_the_score_are_not_resampled():
    """A score that is no share of right answers, as F1, is compared by its standard error."""
    odd = record([1, 0, 1, 1], score=0.4)
    assert not has_answers(odd)
    assert compare(odd, record([1, 0, 0, 1])).test == "unpaired normal"


def test_other_questions_and_other_prompts_are_refused_by_number_and_name():
    first = record([1] * 6)
    fewer = record([1] * 4, model="b")
    with pytest.raises(InputError, match=r"2 were answered by only one of them: anatomy/4, anatomy/5"):
        compare(first, fewer)
    changed = record([1] * 6, model="b")
    for answer in changed.answers[1:]:
        answer["prompt"] = "another"
    with pytest.raises(InputError, match=r"5 differ: anatomy/1, anatomy/2, anatomy/3 and 2 more"):
        compare(first, changed)
    twice = record([1] * 6, model="b")
    twice.answers[5]["id"] = "anatomy/0"
    message = " ".join(mismatches(first, twice))
    assert "1 duplicate ids" in message
    assert "1 were answered by only one of them: anatomy/5" in message
    with pytest.raises(InputError, match="task and protocol must be the same"):
        compare(first, record([1] * 6, "bbh", "b"))
    bare = record([1] * 6, answers=[], prompt_digest="x")
    assert mismatches(bare, record([1] * 6, answers=[], prompt_digest="x")) == []
    assert "digests differ" in mismatches(bare, record([1] * 6, answers=[], prompt_digest="y"))[0]


def test_all_mismatches_of_all_tasks_are_told_at_once():
    pairs = [(1.0, record([1] * 3), record([1] * 2)), (1.0, record([1] * 9, "bbh"), record([1] * 4, "bbh"))]
    with pytest.raises(InputError) as caught:
        compare_means(pairs)
    assert len(caught.value.problems) == 2
