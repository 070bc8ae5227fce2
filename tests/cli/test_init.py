"""What `retune init` writes can be run as it is."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from retune import study
from retune.cli import cli
from retune.errors import InputError
from retune.steps.check import check

BASE = Path(__file__).parents[2] / "examples" / "base" / "tiny"


def init(*words):
    shown = CliRunner().invoke(cli, ["init", *words])
    if shown.exception and not isinstance(shown.exception, SystemExit):
        raise shown.exception
    return shown.output


def test_it_is_valid_as_it_is_and_asks_for_a_gain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = init("--base", str(BASE))
    assert "retune validate study.yaml && retune run study.yaml" in said
    loaded = study.load("study.yaml")
    assert check(loaded)[0] == "sample.jsonl: 200 records, read as prompt-completion"
    assert loaded.promote.gate.min_gain_over_base > 0
    with pytest.raises(
        InputError, match=r"study.yaml and sample.jsonl exist already; choose another name or pass --force"
    ):
        init()
    init("--force", "--base", str(BASE))


def test_ones_own_data_is_named_as_seen_from_the_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("question,answer\n" + "".join(f"q{n},a{n}\n" for n in range(30)))
    init("studies/a.yaml", "--data", "mine.csv", "--base", str(BASE), "--name", "a")
    assert not (tmp_path / "studies" / "sample.jsonl").exists()
    assert "uri: ../mine.csv" in (tmp_path / "studies" / "a.yaml").read_text()
    assert check(study.load("studies/a.yaml"))[:2] == [
        "mine.csv: 30 records, read as question-answer",
        "27 + 3 records; prompt: Alpaca's template",
    ]
    init("studies/b.yaml", "--data", "hf://datasets/owner/name")
    assert "uri: hf://datasets/owner/name" in (tmp_path / "studies" / "b.yaml").read_text()
