"""The output at the end of a run: a user's texts are not read as markup, and commands can be pasted into a shell."""

import shlex

import pytest

from retune.cli import _show
from retune.records import GateRecord
from retune.selection.record import Row, Selection
from retune.steps.outcome import Outcome


def outcome(finding, folder="/tmp/a b"):
    row = Row(
        trial="trial-001",
        number=1,
        role="default",
        assignment={"rank": 4},
        seed=0,
        objective=1.0,
        rank=1,
        scores={},
    )
    selection = Selection(
        study="s", metric="validation_loss", goal="minimize", tasks=[], rows=[row], chosen="trial-001", base=None,
        default="trial-001", rule="the rule [mmlu] of [/x]", findings=[finding],
    )  # fmt: skip
    gate = GateRecord(
        model="m", challenger="1", champion=None, decision="keep", rules=[{"passed": False, "text": finding}]
    )
    return Outcome(
        study="s", folder=folder, report=f"{folder}/report.html", model="m", tracking=f"sqlite:///{folder}/mlflow.db",
        stopped_by="trials", trials=1, failed=0, hours=0.1, selection=selection, gate=gate,
    )  # fmt: skip


@pytest.mark.parametrize("words", ["scores of [mmlu] [bold]fell[/bold]", "a closing tag [/x] alone"])
def test_words_are_no_markup(words, capsys):
    _show.show_outcome(outcome(words), "study.yaml", ())
    printed = capsys.readouterr().out
    assert printed.count(words) == 2
    assert "the rule [mmlu] of [/x]" in printed


def test_printed_commands_can_be_pasted(capsys):
    _show.show_outcome(outcome("none"), "my study.yaml", ("search.parameters=[{name: rank}]",))
    lines = capsys.readouterr().out.splitlines()
    (again,) = (line.removeprefix("more").strip() for line in lines if line.startswith("more"))
    assert shlex.split(again) == [
        "retune",
        "run",
        "my study.yaml",
        "search.parameters=[{name: rank}]",
        "search.trials=2",
    ]
    (look,) = (line.removeprefix("look").strip() for line in lines if line.startswith("look"))
    assert shlex.split(look)[-1] == "sqlite:////tmp/a b/mlflow.db"


def test_the_command_for_more_replaces_the_number_of_trials(capsys):
    _show.show_outcome(outcome("none"), "study.yaml", ("search.trials=1", "seed=3"))
    assert "more   retune run study.yaml seed=3 search.trials=2\n" in capsys.readouterr().out
