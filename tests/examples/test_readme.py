"""The README's first commands lead from a clone to a result on one's own data, and to the steps after it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
pytestmark = pytest.mark.slow


def block(section: str, language: str) -> str:
    """The first block of code of a section."""
    text = README.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    return re.search(rf"^```{language}\n(.*?)^```", text, re.M | re.S)[1]


def type_in(folder: Path, line: str) -> str:
    """Run a line as a person would type it, in a clone with its virtual environment."""
    bin = Path(sys.executable).parent
    env = os.environ | {
        "PATH": f"{bin}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
    }
    env.pop("HF_TOKEN", None)
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A clone with one's own data in it, after the lines of the first block; and what each line printed."""
    clone = tmp_path_factory.mktemp("clone")
    (clone / "examples").symlink_to(ROOT / "examples")
    colours = ["red", "blue", "green", "white", "black", "brown"]
    rows = [
        {"question": f"Mix {a} with {b}.", "answer": f"{a} and {b}"}
        for a in colours
        for b in colours
        if a != b
    ]
    (clone / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (clone / "questions.txt").write_text("".join(f"Mix {one} with gold.\n" for one in colours))
    install, *lines = block("On your own data", "bash").splitlines()
    assert install == 'pip install -c constraints.txt ".[all]"'  # CI does that, and every version is pinned
    assert len(lines) == 4
    return clone, {line.split()[1]: type_in(clone, line) for line in lines}


def test_five_lines_lead_to_a_result_on_own_data(result):
    clone, said = result
    assert "30 records, read as question-answer" in said["validate"]
    assert "my-study version 1" in said["run"]
    assert "> Where is my parcel?\nbase\n" in said["chat"]
    (page,) = clone.glob("artifacts/my-study/search-*/report.html")
    assert page.read_text().count('class="asked"') == len(
        json.loads((page.parent / "answers.json").read_text())["questions"]
    )


def test_each_next_step_does_what_the_table_says(result):
    clone, _ = result
    table = README.split("| then … | |", 1)[1].split("\n\n", 1)[0]
    commands = [found for row in table.splitlines() for found in re.findall(r"`(retune [^`]+)`", row)]
    verbs = {command.split()[1] for command in commands}
    assert verbs == {"watch", "report", "export", "run", "judge", "promote"}
    for command in commands:
        if command.split()[1] == "watch":  # a server: tests/report/test_watch.py
            continue
        if "--push" in command:
            command += " --dry-run --out pushed"
        if "--open" in command:
            command = command.replace("--open yes", "")  # no browser here
        if " run " in command:
            command += " search.trials=4 search.repeats=1"  # as before: nothing is left to do
        if "judge" in command:
            command = command.replace("-n 30", "-n 4 --new-tokens 8")
        if "--rollback" in command:
            continue  # there is one champion yet: tests/registry
        type_in(clone, command)
    assert (clone / "my-model" / "model.safetensors").is_file()
    assert (clone / "champion" / "adapter_model.safetensors").is_file()
    assert (clone / "judge" / "form.html").is_file()
    assert (clone / "study.db").is_file()


def test_the_python_of_the_readme(result):
    clone, _ = result
    said = type_in(clone, f"python - <<'END'\n{block('In Python', 'python')}\nEND")
    assert re.search(r"trial-\d+ \S+/adapter", said)


def test_the_study_of_the_readme_is_one(tmp_path):
    from retune import study

    text = block("A study", "yaml")
    (tmp_path / "study.yaml").write_text(text)
    assert study.load(tmp_path / "study.yaml").name == "support-bot"
