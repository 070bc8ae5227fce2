"""The Pareto set of a study's trials, in the page and in what `retune run` prints."""

import re

from retune.cli._show import show_outcome
from retune.records import TrialRecord
from retune.report.page import render
from retune.selection.pareto import pareto_set
from retune.steps.outcome import Outcome
from tests.report.synthetic import outcome, study

TWO = {"objective": [{"metric": "validation_loss"}, {"metric": "accuracy", "goal": "maximize"}]}


def trial(number, loss, accuracy, role="search", **more):
    return TrialRecord(
        trial=f"trial-{number:03d}", number=number, role=role, assignment={"rank": number}, seed=0, status="completed",
        values={"validation_loss": loss, "accuracy": accuracy, **more},
    )  # fmt: skip


TRIALS = [
    trial(0, 0.1, 0.99, role="base"),
    trial(1, 2.0, 0.5, role="default"),
    trial(2, 1.0, 0.3),
    trial(3, 1.5, 0.5),
    trial(4, 1.5, 0.5),
    trial(5, 3.0, 0.9, adapter_mib=200),
    trial(6, 1.1, 0.2),
    trial(7, 0.9, float("nan")),
    trial(8, 0.5, 0.6, role="repeat"),
]


def names(searching):
    return [row.trial for row in pareto_set(TRIALS, study(search=searching).search)]


def test_it_holds_what_no_other_setting_beats_in_all_objectives():
    assert names(TWO) == ["trial-002", "trial-003", "trial-004", "trial-005"]
    (first, *_) = pareto_set(TRIALS, study(search=TWO).search)
    assert first.values == {"validation_loss": 1.0, "accuracy": 0.3}
    assert first.assignment == {"rank": 2}


def test_trials_that_break_a_constraint_are_no_part_of_it():
    assert names({**TWO, "constraints": [{"metric": "adapter_mib", "max": 100}]}) == []
    limited = {**TWO, "constraints": [{"metric": "accuracy", "max": 0.8}]}
    assert names(limited) == ["trial-002", "trial-003", "trial-004"]


def test_a_single_objective_has_none():
    assert names({}) == []


def several():
    """A study with two objectives that went through: the made-up one, with an accuracy at each trial."""
    asked, records, scores, selection, gate = outcome()
    asked = study(search=TWO)
    records = [
        r.model_copy(update={"values": {**r.values, "accuracy": (r.number * 37 % 41) / 41}})
        if r.values
        else r
        for r in records
    ]
    return asked, records, scores, selection, gate


def test_the_page_has_a_table_of_it_only_for_several_objectives():
    asked, records, scores, selection, gate = several()
    expected = [row.trial for row in pareto_set(records, asked.search)]
    page = render(asked, None, records, scores, selection, gate)
    table = page.split('<h2 id="pareto">')[1].split("</table>")[0]
    assert re.findall(r'<th class="l">(trial-\d+)</th>', table) == expected
    assert "<th>validation loss</th><th>accuracy</th>" in table
    assert 'id="pareto"' not in render(*outcome()[:1], None, *outcome()[1:])


def test_it_is_printed_at_the_end_of_a_run(capsys):
    asked, records, _, selection, gate = several()
    front = pareto_set(records, asked.search)
    ended = Outcome(
        study="s", folder="f", report="r", model="m", tracking="t", stopped_by="trials", trials=40, failed=0, hours=1,
        selection=selection, gate=gate, pareto=front,
    )  # fmt: skip
    show_outcome(ended, "study.yaml", ())
    printed = capsys.readouterr().out
    lines = printed.split("Pareto set: no other setting is better in all of validation loss, accuracy")[
        1
    ].splitlines()
    shown = [line.split()[0] for line in lines if re.match(r"\s+\d{3}\b", line)]
    assert shown == [row.trial.removeprefix("trial-") for row in front]
    show_outcome(ended.model_copy(update={"pareto": []}), "study.yaml", ())
    assert "Pareto set" not in capsys.readouterr().out
