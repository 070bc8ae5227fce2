"""The outcome of a preference study as a figure, as Markdown and through the command line."""

import json
import random
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from retune.cli import cli
from retune.errors import InputError
from retune.evaluation.judge.score import score
from retune.report import preference as page
from tests.evaluation.judge.studies import exported, make, save


@pytest.fixture
def study(tmp_path):
    """Return the key and the files of six people: one unfinished, one bad file; one question with equal answers."""
    key, _ = make(tmp_path, [("same", "same"), *((f"a{k}", f"b{k}") for k in range(7))])
    rng = random.Random(0)
    files = []
    for n in range(6):
        votes = {f"q{k}": rng.choice(["a", "a", "b", "tie"]) for k in range(1, 8 if n else 5)}
        files.append(save(tmp_path / "answers", f"{n}.json", exported(key, f"P|{n} <b>", votes)))
    files.append(save(tmp_path / "answers", "bad.json", b"{"))
    return key, files


def test_the_bars_are_the_shares(study):
    found = score(study[1], study[0])
    figure = page.figure(found)
    bars = [[bar.get_width() for bar in kind] for kind in figure.axes[0].containers]
    assert len(bars) == 3
    assert [len(kind) for kind in bars] == [9, 9, 9]  # overall and eight questions
    all_win, _, all_lose = (kind[0] for kind in bars)
    assert all_win == pytest.approx(100 * found.overall.win / found.overall.n)
    assert all_win - all_lose == pytest.approx(100 * found.score)
    assert all(sum(row) == pytest.approx(100) for row in zip(*bars, strict=True))
    scores = [win - lose for win, _, lose in list(zip(*bars, strict=True))[1:]]
    assert scores == sorted(scores, reverse=True)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["trial-009 better", "about the same", "trial-001 better"]


def test_many_questions_are_drawn_as_one_bar(tmp_path):
    key, _ = make(tmp_path, [(f"a{k}", f"b{k}") for k in range(60)])
    found = score([save(tmp_path, "1.json", exported(key, "P", {f"q{k}": "a" for k in range(60)}))], key)
    figure = page.figure(found)
    assert [len(kind) for kind in figure.axes[0].containers] == [1, 1, 1]
    assert "trial-009 is preferred" in page.markdown(found)
    assert "With one person" in page.markdown(found)


def test_the_page_tells_what_was_counted_and_how(study):
    found = score(study[1], study[0])
    text = page.markdown(found)
    low, high = found.interval
    assert (
        f"preference score {100 * found.score:+.1f} %, interval {100 * low:+.1f} to {100 * high:+.1f}" in text
    )
    assert "1 of 8 drawn questions got equal answers" in text
    assert f"alpha {found.alpha_nominal:.3f} (nominal), {found.alpha_ordinal:.3f}" in text
    assert "- bad.json (damaged): it is not JSON" in text
    rows = [line for line in text.splitlines() if line.startswith("| P\\|0 \\<b\\>")]
    assert len(rows) == 1
    assert rows[0].split(" | ")[4] == "3"  # open
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") in (6, 7, 8)


def test_score_on_the_command_line_finds_the_key_and_writes_all(study, tmp_path):
    result = CliRunner().invoke(cli, ["judge", "score", *study[1]])
    assert result.exit_code == 0, result.output
    assert "# trial-009 against trial-001" in result.stdout
    assert "left out: " in result.stderr
    assert "3 questions are open" in result.stderr
    ElementTree.fromstring((tmp_path / "preference.svg").read_text())
    assert (tmp_path / "preference.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "preference.md").read_text().rstrip() == result.stdout.rstrip()
    again = CliRunner().invoke(
        cli,
        [
            "judge",
            "score",
            *study[1],
            "--key",
            str(tmp_path / "key.json"),
            "--json",
            "--out",
            str(tmp_path / "out"),
        ],
    )
    printed, kept = json.loads(again.stdout), json.loads((tmp_path / "out/preference.json").read_text())
    assert printed == kept
    assert printed["overall"]["win"] + printed["overall"]["tie"] + printed["overall"]["lose"] == 6 * 8 - 3


@pytest.mark.parametrize(
    "words", [["no/where/a.json"], ["nowhere/a.json", "--key", "generated.json"]], ids=["no key", "wrong key"]
)
def test_without_the_key_nothing_is_counted(study, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["judge", "score", *words])
    assert isinstance(result.exception, InputError)
    assert "key" in str(result.exception)


@pytest.mark.parametrize("verb", ["prepare", "score"])
def test_the_help_of_a_part_fits_a_screen_and_has_examples(verb):
    result = CliRunner().invoke(cli, ["judge", verb, "--help"])
    assert "Example" in result.output
    assert len(result.output.splitlines()) <= 45
    assert max(map(len, result.output.splitlines())) <= 110
