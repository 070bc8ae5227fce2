"""The program `retune trial`, started and stopped as an engine does it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from retune.cli.trial import command
from retune.errors import InputError
from retune.records import TrialRecord
from tests.training.conftest import ON_GPU, alike, make_study

LINE = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (\w+)=(\S+)$")
KATIB = re.compile(r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)")  # its default filter


@pytest.fixture
def study_file(study, tmp_path):
    path = tmp_path / "study.json"
    path.write_text(study.model_dump_json())
    return path


def start(*arguments, env=None, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "retune", "trial", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}), **options,
    )  # fmt: skip


def record(folder):
    return TrialRecord.model_validate_json(Path(folder, "trial.json").read_bytes())


@pytest.mark.slow
def test_done(study_file, data, tmp_path):
    out = tmp_path / "t"
    env = {"RETUNE_HP_LEARNING_RATE": "1e-3", "RETUNE_HP_RANK": "8"}
    process = start(
        study_file, "--data", data, "--out", out, "--number", 7, "--rank", 2, "--seed", 5, env=env
    )
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    found = record(out)
    assert (found.trial, found.number, found.role, found.seed) == ("trial-007", 7, "search", 5)
    assert found.assignment == {"rank": 2, "learning_rate": 1e-3}  # the flag wins over the environment
    lines = [LINE.match(line).groups() for line in stdout.splitlines()]
    names = [name for name, _ in lines]
    assert names[:6] == ["train_loss", "validation_loss"] * 2 + ["adapter_mib", "tokens_per_second"]
    assert set(names) == set(found.values)  # any of them may be a constraint under Katib
    assert float(lines[3][1]) == found.values["validation_loss"]
    for line, (name, value) in zip(stdout.splitlines(), lines, strict=True):
        assert KATIB.search(line.partition(" ")[2]).group(1, 2) == (name, value)
    assert "step 12/12" in stderr

    # Once more, in this process: nothing is trained, and the metrics are printed for whoever collects them.
    arguments = [
        str(study_file),
        "--data",
        data,
        "--out",
        str(out),
        "--number",
        "7",
        "--rank",
        "2",
        "--seed",
        "5",
    ]
    again = CliRunner().invoke(
        command, arguments, env={"RETUNE_HP_LEARNING_RATE": "1e-3"}, catch_exceptions=False
    )
    assert again.exit_code == 0
    assert re.findall(r" validation_loss=(\S+)", again.stdout) == [
        v for n, v in lines if n == "validation_loss"
    ]


@pytest.mark.slow
def test_sigterm_saves_and_the_next_run_carries_on(data, base_folder, tmp_path):
    study = make_study(base_folder, epochs=60)
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"

    def run(out):
        process = start("-", "--data", data, "--out", out, stdin=subprocess.PIPE)
        process.stdin.write(study.model_dump_json())
        process.stdin.close()
        process.stdin = None
        return process

    process = run(stopped)
    for line in process.stderr:
        if line.startswith("step"):
            break
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate()
    assert process.returncode == 75, stderr
    assert "a checkpoint was saved, run again to carry on" in stderr
    assert [p.name for p in stopped.iterdir()] == ["checkpoint"]
    for out in (stopped, whole):
        process = run(out)
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr
        assert ("carrying on after step" in stderr) == (out is stopped)
    assert ON_GPU or record(stopped).adapter_digest == record(whole).adapter_digest
    assert record(stopped).values["validation_loss"] == alike(record(whole).values["validation_loss"])


@pytest.mark.slow
def test_failed(study_file, data, tmp_path):
    process = start(study_file, "--data", data, "--out", tmp_path / "t", "--learning-rate", "1e30")
    stdout, stderr = process.communicate()
    assert process.returncode == 1
    assert "failed: the gradient's norm must be finite" in stderr
    assert stdout == ""
    assert record(tmp_path / "t").failure == "nan"


@pytest.mark.slow
def test_bad_input(study_file, tmp_path):
    process = start(study_file, "--data", tmp_path / "nowhere", "--out", tmp_path / "t")
    _, stderr = process.communicate()
    assert process.returncode == 2
    assert "retune mix" in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rank", "many"], "must be a number, but got 'many'"),
        (["--role", "champion"], "'champion' is not one of"),
        (["--number", "-1"], "-1 is not in the range"),
        (["--momentum", "1"], "No such option"),
    ],
)
def test_a_wrong_flag_is_named(study_file, arguments, message):
    result = CliRunner().invoke(command, [str(study_file), "--data", "d", "--out", "o", *arguments])
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must be readable JSON"),
        ("[]", "JSON object"),
        (json.dumps({"name": "a"}), "this key is required"),
    ],
)
def test_a_wrong_study_is_named(tmp_path, content, message):
    path = tmp_path / "study.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(command, [str(path), "--data", "d", "--out", "o"], catch_exceptions=False)


def test_help_fits_a_screen_and_shows_examples():
    result = CliRunner().invoke(command, ["--help"])
    assert len(result.output.splitlines()) <= 45
    assert "torchrun" in result.output
    assert "RETUNE_HP_LEARNING_RATE" in result.output
