"""What comes from files, servers and models reaches the terminal as text: it neither steers it nor loses a letter."""

import json
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from retune.cli import _say, cli
from retune.cli._console import Console

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202ecod\x7f"
STEERING = set("\x1b\x07\x9b\u202e\x7f")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def on_a_terminal(*words, cwd):
    """Return what a command writes to a terminal, where libraries colour and draw."""
    main, end = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200"}
    done = subprocess.Popen(
        [sys.executable, "-m", "retune", *words], stdin=end, stdout=end, stderr=end, cwd=cwd, env=env
    )
    os.close(end)
    written = b""
    while True:
        try:
            part = os.read(main, 4096)
        except OSError:  # Linux' end of a terminal
            break
        written += part
        if not part:
            break
    done.wait()
    os.close(main)
    return written.decode()


def test_a_sentence_steers_no_terminal(capsys):
    _say.say(f"trial {EVIL}", fg="red")
    _say.say(EVIL, err=True)
    _say.say_over(EVIL)
    said = "".join(capsys.readouterr())
    assert not set(said.replace("\r", "")) & STEERING
    assert said.count("\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202ecod\\x7f") == 3


def test_data_for_programs_stays_the_same_to_them(capsys):
    fields = {"name": EVIL, "plain": "Grüße\n"}
    _say.say_data(json.dumps(fields, ensure_ascii=False))
    said = capsys.readouterr().out
    assert not set(said) & STEERING
    assert json.loads(said) == fields


def test_a_secret_is_shown_by_no_sentence(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "correct-horse-battery")
    _say.say("sent with correct-horse-battery")
    assert capsys.readouterr().out == "sent with ***\n"


def test_warnings_of_libraries_steer_no_terminal():
    code = (
        "import logging, sys\nfrom retune.cli import main\nsys.argv = ['retune', '--version']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"logging.getLogger('some.library').warning('cannot read %s', {EVIL!r})"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert "cannot read \\x1b]0;owned" in printed
    assert not set(printed) & STEERING
    assert isinstance(_say.Notes(), logging.Formatter)


@pytest.mark.parametrize("text", [EVIL, "[bold]x[/]", "tickets[/draft].jsonl", "1:100:2", ":smile: [red]"])
def test_a_table_shows_texts_as_they_are(text, capsys):
    from rich.table import Table

    table = Table(text, title=text)
    table.add_row(text)
    console = Console(width=200)
    console.print(table)
    console.print(text)
    said = capsys.readouterr().out
    assert not set(said) & STEERING
    if text != EVIL:
        assert said.count(text) == 4


@pytest.mark.parametrize("name", ["tickets[draft].jsonl", "a:100:b.jsonl", "\x1b[2J\x9b.jsonl"])
def test_a_file_of_any_name_is_mixed_and_named_as_it_is(name, tmp_path):
    folder = tmp_path / "a [" / "b] c"  # to rich's markup [/b] is an end without a beginning
    folder.mkdir(parents=True)
    (folder / name).write_bytes((EXAMPLES / "data/dolly-demo.jsonl").read_bytes())
    (folder / "study.yaml").write_text(
        json.dumps({
            "name": "s", "model": str(EXAMPLES / "base/tiny"), "promote": {"model": "m"}, "search": {"trials": 2},
            "data": {"sources": [{"uri": name}], "train": 40, "validation": 10},
        })
    )  # fmt: skip
    said = on_a_terminal("mix", "study.yaml", cwd=folder)
    assert "a [/b] c/artifacts" in said, said
    assert name.replace("\x1b", "\\x1b").replace("\x9b", "\\x9b") in said
    assert "\x1b[2J" not in said
    assert "\x9b" not in said


def test_scores_of_a_table_from_elsewhere_steer_no_terminal(tmp_path):
    table = tmp_path / "scores.csv"
    table.write_text(f"model,mmlu\n{EVIL},0.3\nb,0.2\n")
    for words in ([], ["--json"]):
        said = CliRunner().invoke(cli, ["select", "--scores", str(table), *words])
        assert said.exit_code == 0, said.output
        assert not set(said.output) & STEERING
        assert "owned" in said.output
