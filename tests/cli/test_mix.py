import json
import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner

from retune.cli.mix import command
from retune.errors import InputError
from tests.data.test_mixing import numbered, write_alpaca, write_dolly
from tests.data.test_tokens import tokenizer


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Return a study file with 200 and 100 records, in the current folder."""
    monkeypatch.chdir(tmp_path)
    sources = [write_alpaca(tmp_path / "a.json", numbered("ask", 200))]
    sources += [write_dolly(tmp_path / "d.jsonl", numbered("tell", 100))]
    tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text("{}")
    content = {
        "name": "s", "model": {"base": "./base"}, "promote": {"model": "m"},
        "data": {"sources": [s.model_dump() for s in sources], "train": 100, "validation": 20},
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    return "study.yaml"


def run(*words):
    found = CliRunner().invoke(command, words, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


def test_json_names_the_folder_that_the_recipe_gives(study, tmp_path):
    found = json.loads(run(study, "--json"))
    assert found["uri"] == str(tmp_path / "artifacts" / "s" / f"data-{found['recipe']}")
    assert json.loads((tmp_path / found["uri"] / "mix.json").read_text())["digest"] == found["digest"]
    assert json.loads(run(study, "--json")) == found


def test_table_shows_every_count(study):
    shown = " ".join(run(study, "--out", "mixed", "data.train=50").replace("│", " ").split())
    for row in (
        "read 200 100 300",
        "train records 35 15 50",
        "validation records 14 6 20",
        "share 70.0% 30.0%",
    ):
        assert row in shown
    assert "folder mixed" in shown


def test_too_few_records_exit_with_what_works(study):
    with pytest.raises(InputError, match=r"data\.train=\d+ data\.validation=\d+"):
        run(study, "data.train=5000")


def test_exit_code_and_words_of_the_program(study, tmp_path):
    """The real program: bad input ends with 2 and its sentences, not with a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "retune", "mix", study, "data.sources.0.uri=gone.json"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "gone.json: the file must exist" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "artifacts").exists()
