"""`retune suggest` on a search's folder."""

import json

import pytest
import yaml
from click.testing import CliRunner

from retune.cli.suggest import command
from retune.errors import InputError
from retune.records import TrialRecord
from retune.space import tribes2024

STUDY = {
    "name": "s",
    "model": {"base": "m"},
    "data": {"sources": [{"format": "alpaca", "uri": "a.json", "share": 1}], "train": 10, "validation": 5},
    "promote": {"model": "m"},
}


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """A search with two finished trials and a running one."""
    from retune.workspace.ledger import Ledger

    ledger, default = Ledger(str(tmp_path / "search")), tribes2024().default()
    for number, values in ((1, {"validation_loss": 1.5}), (2, None), (3, {})):
        assignment = {**default, "alpha": 31 + number}
        task = ledger.issue(number, "default" if number == 1 else "search", assignment, 0)
        if values is not None:
            status = "completed" if values else "failed"
            record = TrialRecord(**task.model_dump(exclude={"folder"}), status=status, values=values)
            ledger.finish(record, write=True)
    return str(tmp_path / "search")


def run(*arguments):
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_new_study_starts_with_the_default(study):
    lines = run("--study", study, "--count", "3").splitlines()
    assert lines[0] == "mads-global, knowing 0 completed, 0 failed, 0 running"
    assert lines[1].split() == [
        "start:",
        "default",
        "rank=8",
        "dropout=0.1",
        "alpha=32",
        "learning_rate=1e-05",
    ]
    assert lines[2].startswith("start: Latin hypercube")


def test_a_search_goes_on(study, folder):
    lines = run("--study", study, "--history", folder, "--count", "2").splitlines()
    assert lines[0] == "mads-global, knowing 1 completed, 1 failed, 1 running"
    assert len(lines) == 3
    assert lines == run("--study", study, "--history", folder, "--count", "2").splitlines()


def test_what_katib_stopped_is_known_by_its_last_value_and_what_was_interrupted_not_at_all(study, folder):
    from retune.workspace.ledger import Ledger

    def known(status):
        ledger = Ledger(folder)
        task = ledger.tasks["trial-002"]
        values = {"validation_loss": 3.0} if status == "early_stopped" else {}
        record = TrialRecord(**task.model_dump(exclude={"folder"}), status=status, values=values)
        ledger.finish(record, write=True)
        return run("--study", study, "--history", folder).splitlines()[0]

    assert known("early_stopped") == "mads-global, knowing 1 completed, 1 stopped early, 1 failed, 0 running"
    assert known("interrupted") == "mads-global, knowing 1 completed, 1 failed, 0 running"


def test_json_for_programs(study, folder):
    lines = run("--study", study, "--history", folder, "--json").splitlines()
    proposal = json.loads(lines[0])
    assert set(proposal) == {"assignment", "origin"}
    assert set(proposal["assignment"]) == set(tribes2024().names)


def test_a_folder_without_trials_is_refused(study, tmp_path):
    with pytest.raises(InputError, match="trials/trial-001"):
        run("--study", study, "--history", str(tmp_path))
