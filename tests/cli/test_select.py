"""`retune select`, the command: its two inputs, what it prints and writes, and what it refuses."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from retune.cli import cli
from retune.errors import InputError
from tests.report.synthetic import outcome

PAPER = str(Path(__file__).parents[1] / "selection/tribes2024/tables.csv")


def run(*words: str):
    return CliRunner().invoke(cli, ["select", *words], catch_exceptions=True)


def test_scores_become_tables_on_the_screen_in_a_file_and_as_json(tmp_path):
    page = tmp_path / "choice.md"
    done = run("--scores", PAPER, "--out", str(page))
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("# Selection: tables.csv")
    assert page.read_text() == done.stdout
    found = json.loads(run("--scores", PAPER, "--json").stdout)
    assert found["selection"]["chosen"] == "NOMAD 7"
    assert len(found["tables"]) == 2
    assert {s["method"] for s in found["statistics"]} == {"NOMAD", "NNI-TPE"}


def test_a_search_is_read_as_it_lies_and_two_of_them_are_two_methods(tmp_path):
    asked, records, scores, selection, _ = outcome()
    for name in ("search-a", "search-b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "study.json").write_text(asked.model_dump_json())
        for record in records:
            path = folder / "trials" / f"{record.trial}-{record.seed}" / "trial.json"
            path.parent.mkdir(parents=True)
            path.write_bytes(record.to_json())
        for bench in scores:
            path = folder / "bench" / bench.model / f"{bench.task}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bench.to_json())
    one = json.loads(run("--scores", str(tmp_path / "search-a"), "--json").stdout)
    assert one["selection"]["chosen"] == selection.chosen
    assert one["metric"] == "validation_loss"
    assert one["selection"]["base"] == "trial-000"
    both = run("--scores", f"NOMAD={tmp_path}/search-a", "--scores", f"TPE={tmp_path}/search-b", "--json")
    found = json.loads(both.stdout)
    assert [table["method"] for table in found["tables"]] == ["NOMAD", "TPE"]
    assert found["selection"]["chosen"] == f"NOMAD {selection.chosen}"
    assert found["selection"]["runner_up"] == f"TPE {selection.chosen}"


@pytest.mark.parametrize(
    "words", [[], ["study.yaml", "--scores", PAPER], ["study.yaml", "--weights", "mmlu=1"]]
)
def test_one_kind_of_input_at_a_time(words):
    assert run(*words).exit_code == 2


def test_bad_input_is_an_error_for_people(tmp_path):
    done = run("--scores", str(tmp_path / "gone.csv"))
    assert isinstance(done.exception, InputError)
    assert "there is no such file" in str(done.exception)
