"""`retune run`, the real program: to the end, again, stopped, killed, with a server that goes away, twice at once."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import DEMO, SMALL, wait_for

pytestmark = pytest.mark.slow
STUDY = [str(DEMO), *SMALL, "search.algorithm=nomad"]
SHOWN = ["tracking.tensorboard=tb", "report.answers=2"]  # no part of a result


def finish(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, f"{out}\n{err}"
    return out, err


def trials(folder):
    """Return setting and result of every trial below an artifacts folder."""
    found = {}
    for path in sorted(Path(folder).glob("artifacts/first-study/search-*/trials/*/trial.json")):
        record = json.loads(path.read_text())
        found[record["trial"]] = (
            record["assignment"],
            record["values"].get("validation_loss"),
            record["adapter_digest"],
        )
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    process = subprocess.run(
        [sys.executable, "-m", "retune", "run", *STUDY, *SHOWN, "--json"], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return folder, json.loads(process.stdout)


@pytest.mark.fresh
def test_a_run_ends_with_a_champion_a_report_and_tracked_trials(undisturbed):
    from mlflow import MlflowClient

    folder, outcome = undisturbed
    assert outcome["gate"]["decision"] == "promote"
    assert (
        Path(outcome["report"]).read_text().startswith("<!doctype html>".upper())
        or "<html" in Path(outcome["report"]).read_text()
    )
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db", f"sqlite:///{folder}/mlflow.db")
    assert (
        str(client.get_model_version_by_alias("first-study-adapter", "champion").version)
        == outcome["gate"]["challenger"]
    )
    experiment = client.get_experiment_by_name("first-study")
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(children) == 5
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    figures = {item.path for item in client.list_artifacts(parent.info.run_id, "figures")}
    assert len(figures) >= 3
    assert {"algorithm", "seed", "data_digest", "base_revision"} <= set(parent.data.tags)


def test_a_run_fills_tensorboard_and_lets_the_models_answer(undisturbed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, outcome = undisturbed
    search = Path(outcome["folder"])
    for trial, (_, loss, _) in trials(folder).items():
        shown = EventAccumulator(str(folder / "tb" / "first-study" / search.name / trial)).Reload()
        assert shown.Scalars("final/validation_loss")[0].value == pytest.approx(loss)
        assert len(shown.Scalars("validation_loss")) == len(
            {p.step for p in shown.Scalars("validation_loss")}
        )
    answers = json.loads((search / "answers.json").read_text())
    chosen = outcome["selection"]["chosen"]
    assert (answers["chosen"], len(answers["questions"])) == (chosen, 2)
    assert all({"trial-000", chosen} <= question["answers"].keys() for question in answers["questions"])
    assert Path(outcome["report"]).read_text().count('class="asked"') == 2


def test_the_registered_adapter_is_what_peft_loads(undisturbed):
    from mlflow import MlflowClient
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder, _ = undisturbed
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db", f"sqlite:///{folder}/mlflow.db")
    version = client.get_model_version_by_alias("first-study-adapter", "champion")
    adapter = client.download_artifacts(version.run_id, "adapter", str(folder))
    base = AutoModelForCausalLM.from_pretrained(version.tags["base"])
    model = PeftModel.from_pretrained(base, adapter)
    assert model.peft_config["default"].r > 0


def test_a_second_run_redoes_nothing_and_says_so(undisturbed):
    folder, outcome = undisturbed
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    again = run_again(folder)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("up to date") == 7
    assert outcome["selection"]["chosen"] in again.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")} == before
    slow = {"torch", "transformers", "tokenizers", "mlflow", "kfp", "peft", "scipy.linalg", "matplotlib"}
    assert not slow & imported(again.stderr), "it has nothing to do, so it needs none of the large libraries"


def test_a_second_run_on_data_that_is_gone_is_refused(undisturbed):
    folder, _ = undisturbed
    again = run_again(folder, "data.sources.0.uri=gone.json", "data.sources.1.uri=gone.jsonl")
    assert again.returncode == 2, again.stderr
    assert re.search(r"gone\.json\b", again.stderr)
    assert re.search(r"gone\.jsonl\b", again.stderr)


def run_again(folder, *overrides):
    """Run the finished study again; the error output names every module that was imported."""
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "retune", "run", *STUDY, *overrides],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


def imported(errors):
    """Return the names of the modules in the output of `python -X importtime`."""
    return {
        line.rpartition("|")[2].strip() for line in errors.splitlines() if line.startswith("import time:")
    }


def test_killed_at_ten_random_moments_it_ends_as_an_undisturbed_run(undisturbed, retune, tmp_path):
    draw = random.Random(11)
    for kill in range(10):
        # A new interpreter takes as long to import what it needs as a forked one takes for the whole run
        fresh = kill < 2
        process = retune("run", *STUDY, **({"RETUNE_TESTS_FRESH": "1"} if fresh else {}))
        time.sleep(draw.uniform(1, 12) if fresh else draw.uniform(0.2, 5))
        process.kill()  # only the program itself: its children must end by themselves
        process.wait()
    out, _ = finish(retune("run", *STUDY, "--json"))
    assert trials(tmp_path) == trials(undisturbed[0])
    assert json.loads(out)["selection"]["chosen"] == undisturbed[1]["selection"]["chosen"]


def test_ctrl_c_saves_and_the_next_run_carries_on(undisturbed, retune, tmp_path):
    process = retune("run", *STUDY)
    wait_for(lambda: len(trials(tmp_path)) >= 1, seconds=300)
    process.send_signal(signal.SIGINT)
    _, err = finish(process, code=75)
    assert "Run the same command to resume" in err
    finish(retune("run", *STUDY))
    assert trials(tmp_path) == trials(undisturbed[0])


def test_two_runs_at_once_are_refused(retune, tmp_path):
    first = retune("run", *STUDY)
    wait_for(lambda: (tmp_path / "artifacts/first-study/logs/pipeline.log").exists())
    _, err = finish(retune("run", *STUDY), code=1)
    assert f"process {first.pid}" in err
    finish(first)


def test_bad_input_names_every_problem_and_writes_nothing(retune, tmp_path):
    _, err = finish(
        retune("run", str(DEMO), "data.max_lenght=5", "search.trials=0", "data.sources.0.share=0.9"), code=2
    )
    assert "did you mean 'max_length'" in err
    assert "search.trials" in err
    assert "shares must add up to 1" in err
    assert list(tmp_path.iterdir()) == []


def test_missing_files_are_all_named_before_anything_is_spent(retune, tmp_path):
    words = ["data.sources.0.uri=gone.json", "data.sources.1.uri=gone.jsonl", "search.settings={nonsense: 1}"]
    _, err = finish(retune("run", *STUDY, *words), code=2)
    assert "gone.json" in err
    assert "gone.jsonl" in err
    assert "nonsense" in err
    assert list(tmp_path.iterdir()) == []


def test_a_failing_step_is_named_with_its_log(retune, tmp_path):
    words = [*STUDY, "tracking.uri=http://127.0.0.1:9"]
    _, err = finish(retune("run", *words, RETUNE_PATIENCE_SECONDS="1"), code=1)  # else it waits for minutes
    assert "the step 'register' failed: " in err
    assert "http://127.0.0.1:9" in err
    assert "raise RuntimeError" not in err
    assert "pipeline.log" in err
    assert len(trials(tmp_path)) == 5  # the search itself does not need the server
