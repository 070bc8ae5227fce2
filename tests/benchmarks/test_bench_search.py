"""The search comparison: its statistics on made-up regrets, and a tiny run that is cut off and carried on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import mannwhitneyu

import search_goals

ROOT = Path(__file__).parents[2]
GOOD, POOR = [k / 100 for k in range(20)], [0.1 + k / 100 for k in range(20)]


def row(algorithm, surface, batch, regret, failed=0.0):
    marks = dict.fromkeys(("25", "30", "50", "100"), regret)
    return {
        "algorithm": algorithm,
        "surface": surface,
        "batch": batch,
        "regret": marks,
        "failed": [failed] * 20,
    }


def test_the_goal_by_medians_names_the_surfaces_where_it_is_not_reached():
    rows = [row("mads-global", surface, 8, GOOD) for surface in search_goals.SIX]
    rows += [
        row("hyperopt", surface, 8, GOOD if surface == "dolly" else POOR) for surface in search_goals.SIX
    ]
    rows += [row("nni", surface, 8, POOR) for surface in search_goals.SIX[1:]]  # one is not measured
    assert search_goals.by_medians(rows) == [("hyperopt", 8, list(search_goals.SIX), [])]
    rows[0]["regret"]["25"] = [value + 1 for value in POOR]
    assert search_goals.by_medians(rows) == [
        ("hyperopt", 8, list(search_goals.SIX[1:]), [search_goals.SIX[0]])
    ]


def goals(ours, theirs, failed=(1, 5)):
    """The goals by their first words, where all of ours have one list of regrets and all rivals another one."""
    rows = [
        row(name, surface, 8, ours, failed[0])
        for name in ("nomad", "mads-global")
        for surface in ("davouse-64", "cliff")
    ]
    for surface in ("davouse-64", "cliff"):
        rows += [row(name, surface, 8, theirs, failed[1]) for name in ("hyperopt", "optuna-multivariate")]
        rows.append(row("nomad-optimize", surface, 1, theirs))
    return search_goals.judge(rows)


def test_all_goals_hold_when_ours_is_better_and_none_when_it_is_worse():
    assert [goal.holds for goal in goals(GOOD, POOR)] == [True] * 6
    assert {c.verdict for goal in goals(GOOD, POOR) for c in goal.comparisons} == {"ahead"}
    assert [goal.holds for goal in goals(POOR, GOOD, failed=(1, 4.9))] == [False] * 6
    assert {c.verdict for goal in goals(POOR, GOOD) for c in goal.comparisons} == {"behind"}


def test_equal_regrets_are_level_and_hold():
    found = goals(GOOD, GOOD)
    assert all(goal.holds for goal in found)
    assert {c.verdict for goal in found for c in goal.comparisons} == {"level"}


def test_the_rank_test_is_that_of_scipy():
    tied = [round(value, 1) for value in POOR]
    z = search_goals.stratified([(GOOD, tied)])
    expected = mannwhitneyu(
        GOOD, tied, alternative="greater", method="asymptotic", use_continuity=False
    ).pvalue
    assert search_goals.compared("x", search_goals.Side("nomad", 50), [(GOOD, tied)]).behind == pytest.approx(
        expected
    )
    assert search_goals.stratified([(tied, GOOD)]) == pytest.approx(-z)
    assert abs(search_goals.stratified([(GOOD, tied)] * 4)) == pytest.approx(2 * abs(z))


def test_holm_corrects_for_the_number_of_comparisons():
    assert search_goals.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert search_goals.holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_goal_without_all_its_results_is_not_judged():
    assert search_goals.judge([row("mads-global", "cliff", 8, GOOD)]) == []


@pytest.mark.slow
def test_a_run_is_carried_on_and_gives_the_same_numbers(tmp_path):
    def measured(*more):
        command = [
            sys.executable, ROOT / "benchmarks" / "bench_search.py", "--surfaces", "valley", "--algorithms", "random", "lhs",
            "--trials", "30", "--lines", tmp_path / "lines", "--out", tmp_path / "out.json", "--page", tmp_path / "page.md", *more,
        ]  # fmt: skip
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "RETUNE_DATA": str(tmp_path)},
        )
        return ended.stdout, json.loads((tmp_path / "out.json").read_text())["rows"]

    whole, rows = measured("--seeds", "2")
    assert whole.count("valley") == 4
    lines = (tmp_path / "lines").read_text().splitlines(keepends=True)
    (tmp_path / "lines").write_text("".join(lines[:3]) + lines[3][:40])
    again, same = measured("--seeds", "2")
    assert again.count("valley") == 2
    assert same == rows
    assert "| random | 8 |" in (tmp_path / "page.md").read_text()
    assert (tmp_path / "page.svg").read_text().startswith("<svg")


def controlled(ours, theirs, blind):
    """The first goals, with `random` run too."""
    rows = []
    for surface in ("alpaca-dolly", "davouse-64"):
        rows += [row(name, surface, 8, ours) for name in ("nomad", "mads-global")]
        rows += [row(name, surface, 8, theirs) for name in ("hyperopt", "optuna-multivariate")]
        rows += [row("nomad-optimize", surface, 1, theirs), row("random", surface, 8, blind)]
    return search_goals.judge(rows)[:4]


def test_a_goal_that_random_would_reach_does_not_hold():
    assert all(goal.holds for goal in controlled(GOOD, GOOD, POOR))
    found = controlled(GOOD, GOOD, GOOD)
    assert not any(goal.holds for goal in found)
    assert all("`random` would pass" in goal.summary for goal in found)


def test_being_level_is_not_enough_without_showing_it():
    """With four seeds nobody is shown to be behind, nor shown not to be."""
    found = controlled([0.1, 0.3, 0.5, 0.7], [0.0, 0.2, 0.4, 0.6], [0.9] * 4)
    assert not any(goal.holds for goal in found)
    assert all("too little to show" in goal.summary for goal in found)
    assert {c.verdict for goal in found for c in goal.comparisons} == {"level"}


def test_the_surface_that_tells_nothing_is_left_out():
    assert search_goals.judge([row(n, "davouse-512", 8, GOOD) for n in ("mads-global", "hyperopt")]) == []
