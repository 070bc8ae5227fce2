"""The choice compared with base, default, runner-up and best objective: differences within noise are reported as such."""

import random

import pytest

from retune.errors import InputError
from retune.records import BenchRecord
from retune.selection.choice import select
from retune.selection.comparison import summary
from retune.selection.record import Selection
from retune.study import Objective, Select
from tests.selection.test_choice import LOSS, trial


def bench(number: int, right: list[bool], task: str = "mmlu", **changes) -> BenchRecord:
    answers = [{"id": f"anatomy/{k}", "prompt": f"p{k}", "right": one} for k, one in enumerate(right)]
    share = sum(right) / len(right)
    error = (share * (1 - share) / (len(right) - 1)) ** 0.5
    given = {"score": share, "stderr": error, "n": len(right), "answers": answers}
    return BenchRecord(
        model=f"trial-{number:03d}", task=task, shots=5, protocol="instruct-eval", **{**given, **changes}
    )


def flipped(right: list[bool], ups: int, downs: int) -> list[bool]:
    """The same answers, but `ups` wrong ones put right and `downs` right ones wrong."""
    found = list(right)
    for k, one in enumerate(right):
        if not one and ups:
            found[k], ups = True, ups - 1
        elif one and downs:
            found[k], downs = False, downs - 1
    assert (ups, downs) == (0, 0)
    return found


CHANCE = random.Random(0)
BASE = [CHANCE.random() < 0.4 for _ in range(400)]


@pytest.fixture
def trials():
    losses = [3.0, 2.5, 1.5, 1.6]
    return [trial(k, loss, ("base", "default", "search", "search")[k]) for k, loss in enumerate(losses)]


def test_noise_is_called_noise_and_a_difference_a_difference(trials):
    """Trial 3 has 40 more right than base and default; trial 2, with the best loss, only 3 fewer than trial 3."""
    benches = [
        bench(0, BASE),
        bench(1, BASE),
        bench(2, flipped(BASE, 40, 3)),
        bench(3, flipped(BASE, 40, 0)),
    ]
    selection = select(trials, benches, LOSS, Select(), ["mmlu"])
    assert (selection.chosen, selection.runner_up) == ("trial-003", "trial-002")
    verdicts = {c.against: c.verdict for c in selection.comparisons}
    assert verdicts == {"trial-000": "better", "trial-001": "better", "trial-002": "noise"}
    sentences = {c.against: c.sentence() for c in selection.comparisons}
    assert sentences["trial-000"].startswith(
        "mmlu: better than trial-000 (untuned base) beyond noise (+10.00 points"
    )
    assert (
        "no difference beyond noise from trial-002 (runner-up, lowest validation loss)"
        in sentences["trial-002"]
    )
    assert [(c.first_only, c.second_only) for c in selection.comparisons] == [(40, 0), (40, 0), (3, 0)]
    assert any("no difference beyond noise, so it may be luck" in found for found in selection.findings)
    assert "trial-003 was chosen from 3 candidates with all scores" in selection.why
    assert "trial-002 has the lowest validation_loss" in selection.why
    assert Selection.model_validate_json(selection.to_json()) == selection
    assert [summary([c]) for c in selection.comparisons] == [
        "against trial-000 (untuned base): better on mmlu +10.00 points",
        "against trial-001 (default setting): better on mmlu +10.00 points",
        "against trial-002 (runner-up, lowest validation loss): no difference beyond noise on mmlu",
    ]


def test_the_p_values_are_adjusted_for_their_number(trials):
    benches = [bench(0, BASE), bench(1, BASE), bench(2, BASE), bench(3, flipped(BASE, 7, 0))]
    found = select(trials, benches, LOSS, Select(), ["mmlu"]).comparisons
    assert [c.p for c in found] == [pytest.approx(2 / 128)] * 3
    assert [c.p_holm for c in found] == [pytest.approx(6 / 128)] * 3
    assert {c.verdict for c in found} == {"better"}
    less = [bench(0, BASE), bench(1, BASE), bench(2, BASE), bench(3, flipped(BASE, 6, 0))]
    selection = select(trials, less, LOSS, Select(), ["mmlu"])
    assert {c.verdict for c in selection.comparisons} == {"noise"}
    finding = (
        "no score of the chosen trial-003 differs from the untuned base's beyond noise: mmlu +1.50 points"
    )
    assert finding in selection.findings


def test_equal_answers_and_worse_scores_are_said_so(trials):
    benches = [bench(0, flipped(BASE, 60, 0)), bench(1, BASE), bench(2, BASE), bench(3, BASE)]
    selection = select(trials, benches, LOSS, Select(), ["mmlu"])
    verdicts = {c.against: c.verdict for c in selection.comparisons}
    assert selection.chosen == "trial-002"  # equal scores: the loss breaks the tie
    assert verdicts == {"trial-000": "worse", "trial-001": "equal", "trial-003": "equal"}
    assert any("below the untuned base on mmlu −15.00 points (beyond noise)" in f for f in selection.findings)


def test_the_mean_that_decides_is_tested_too(trials):
    benches = [
        bench(k, right, task)
        for task in ("mmlu", "drop")
        for k, right in enumerate((BASE, BASE, BASE, flipped(BASE, 12, 0)))
    ]
    selection = select(trials, benches, LOSS, Select(weights={"mmlu": 3, "drop": 1}), ["mmlu", "drop"])
    means = [c for c in selection.comparisons if c.task == "mean" and c.against == "trial-000"]
    assert [c.difference for c in means] == [pytest.approx(0.03)]
    assert means[0].paired
    assert means[0].n == 800


def test_scores_of_other_questions_are_refused(trials):
    benches = [bench(k, BASE) for k in range(3)] + [bench(3, BASE[:390])]
    with pytest.raises(
        InputError,
        match=r"10 were answered by only one of them: anatomy/390, anatomy/391, anatomy/392 and 7 more",
    ):
        select(trials, benches, LOSS, Select(), ["mmlu"])
    other = bench(3, BASE)
    for answer in other.answers:
        answer["prompt"] += "!"
    with pytest.raises(InputError, match="400 differ"):
        select(trials, [*benches[:3], other], LOSS, Select(), ["mmlu"])
    # Scores on a task that the study does not have are not compared
    assert select(trials, [*benches[:3], other], LOSS, Select(), []).chosen == "trial-002"


def test_scores_alone_are_compared_by_their_standard_errors_or_not_at_all(trials):
    bare = [bench(k, flipped(BASE, 40 * (k == 3), 0), answers=[]) for k in range(4)]
    found = select(trials, bare, LOSS, Select(), ["mmlu"]).comparisons
    assert {c.test for c in found} == {"unpaired normal"}
    assert {c.verdict for c in found} == {"better"}  # 10 points, with a standard error of 3.5
    unknown = [record.model_copy(update={"n": 0}) for record in bare]
    selection = select(trials, unknown, LOSS, Select(), ["mmlu"])
    assert {c.verdict for c in selection.comparisons} == {"untested"}
    assert "it may be noise" in selection.comparisons[0].sentence()


def test_the_pareto_set_is_over_the_scores_and_over_objectives_that_were_named_as_goals(trials):
    """The best loss alone makes no trial Pareto-optimal; a second objective of the search does."""
    shares = [0.2, 0.3, 0.3, 0.4]
    benches = [bench(k, [n < 400 * share for n in range(400)]) for k, share in enumerate(shares)]
    assert select(trials, benches, LOSS, Select(), ["mmlu"]).pareto == ["trial-003"]
    sizes = [t.model_copy(update={"values": {**t.values, "adapter_mib": 10.0 * t.number}}) for t in trials]
    by_loss = Select(rule="lexicographic", order=["objective"])  # the loss chooses, by name
    assert select(trials, benches, LOSS, by_loss, ["mmlu"]).chosen == "trial-002"
    further = [Objective(metric="adapter_mib", goal="minimize")]
    both = select(sizes, benches, LOSS, Select(), ["mmlu"], further=further)
    assert both.pareto == ["trial-002", "trial-003", "trial-001"]
    assert both.chosen == "trial-003"
    assert select(trials, benches, LOSS, Select(), ["mmlu"], further=further).chosen is None  # never measured


def test_records_of_an_older_version_are_still_read(trials):
    selection = select(trials, [], LOSS, Select(), [])
    old = selection.model_dump(exclude={"why", "runner_up", "untuned", "associations", "comparisons"})
    assert Selection.model_validate(old).chosen == selection.chosen
    assert "no benchmark was asked for, so the objective alone chose" in selection.why
