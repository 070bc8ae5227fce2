"""`retune select` on a study: tables and a choice from its records, none of which is changed."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from retune.cli import cli
from retune.errors import InputError, RetuneError
from retune.records import BenchRecord
from retune.steps.select import select
from retune.steps.tables import tables


def score(folder, trial: str, right: list[bool], prompt: str = "p") -> None:
    answers = [{"id": f"anatomy/{k}", "prompt": f"{prompt}{k}", "right": one} for k, one in enumerate(right)]
    record = BenchRecord(
        model=trial, task="mmlu", score=sum(right) / len(right), stderr=0.05, n=len(right), shots=5,
        protocol="instruct-eval", answers=answers,
    )  # fmt: skip
    folder.write(f"bench/{trial}/mmlu.json", record)


@pytest.fixture
def scored(searched):
    """The base right on 20 of 60 questions, the default on 50, the trial with the best loss on 40."""
    study, folder, tmp_path = searched
    study = study.model_copy(
        update={"select": study.select.model_copy(update={"rule": "weighted", "weights": {}})}
    )
    for trial, right in (("trial-000", 20), ("trial-001", 50), ("trial-002", 40)):
        score(folder, trial, [k < right for k in range(60)])
    return study, folder, tmp_path


def test_tables_of_a_study_are_the_choice_that_its_step_makes(scored):
    study, folder, _ = scored
    board = tables(study)
    assert board.selection == select(study, folder)
    assert board.selection.chosen == "trial-001"
    assert [line.model for line in board.tables[0].lines] == ["trial-002", "trial-001", "trial-000"]
    assert {(c.against, c.verdict) for c in board.selection.comparisons} == {
        ("trial-000", "better"),
        ("trial-002", "better"),
    }
    assert board.notes == []


def test_another_rule_is_shown_beside_what_the_study_chose_and_changes_nothing(scored):
    study, folder, _ = scored
    select(study, folder)
    before = {path: path.read_bytes() for path in Path(folder.uri).rglob("*") if path.is_file()}
    by_loss = study.model_copy(
        update={"select": study.select.model_copy(update={"rule": "lexicographic", "order": ["objective"]})}
    )
    board = tables(by_loss)
    assert board.selection.chosen == "trial-002"
    assert "The study itself chose trial-001" in board.notes[0]
    assert {path: path.read_bytes() for path in Path(folder.uri).rglob("*") if path.is_file()} == before


def test_the_command_reads_the_study_file(scored):
    study, _, tmp_path = scored
    path = tmp_path / "study.yaml"
    path.write_text(study.model_dump_json())  # YAML is a superset of JSON
    shown = CliRunner().invoke(cli, ["select", str(path), "select.rule=weighted", "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["selection"]["chosen"] == "trial-001"
    printed = CliRunner().invoke(cli, ["select", str(path), "--out", str(tmp_path / "choice.md")])
    assert "mmlu" in printed.stdout
    assert (tmp_path / "choice.md").read_text() == printed.stdout


def test_scores_of_other_prompts_stop_the_choice(scored):
    study, folder, _ = scored
    score(folder, "trial-002", [True] * 60, prompt="another")
    for choose in (lambda: tables(study), lambda: select(study, folder)):
        with pytest.raises(InputError, match="60 differ: anatomy/0, anatomy/1, anatomy/10 and 57 more"):
            choose()
    assert not (Path(folder.uri) / "selection.json").exists()


def test_a_study_without_a_finished_search_has_no_tables(small):
    with pytest.raises(RetuneError, match="is not finished"):
        tables(small())
