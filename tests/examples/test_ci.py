"""The third example: the workflow's own steps, run for every kind of change that CI may bring."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.conftest import ROOT

from retune import study

pytestmark = pytest.mark.slow
EXAMPLE = ROOT / "examples/03-retune-in-ci"
WORKFLOW = yaml.safe_load((EXAMPLE / "workflow.yaml").read_text())
STEPS = [step["run"] for step in WORKFLOW["jobs"]["retune"]["steps"] if "run" in step]  # fmt: skip
SMALL = "data.train=40 data.validation=20 search.trials=2 search.repeats=0 engine.threads=1"


def git(*words):
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words], check=True)


def commit(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    git("add", "-A")
    git("commit", "-qm", path.name)


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A function that runs a CI job in a clone: the workflow's steps, one after the other."""
    git("clone", "-q", "--depth", "1", f"file://{ROOT}", str(tmp_path / "clone"))
    clone = tmp_path / "clone"
    for name in ("data", "base", "03-retune-in-ci"):  # as they are here, committed or not
        shutil.copytree(ROOT / "examples" / name, clone / "examples" / name, dirs_exist_ok=True)
    monkeypatch.chdir(clone)
    git("checkout", "-qB", "main")
    # What the step installs comes from the packages of this environment, but for retune itself.
    packages = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    env = {**os.environ, "PYTHONPATH": packages, "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1",
           "ARTIFACTS": "./artifacts", "TRACKING": "sqlite:///mlflow.db", "OVERRIDES": SMALL}  # fmt: skip
    assert set(WORKFLOW["env"]) == {"ARTIFACTS", "TRACKING", "OVERRIDES"}

    def run():
        steps = STEPS if not Path(".venv").exists() else STEPS[1:]
        said = [subprocess.run(["bash", "-euo", "pipefail", "-c", step], env=env, capture_output=True, text=True, check=False)
                for step in steps]  # fmt: skip
        assert not any(step.returncode for step in said), [step.stderr for step in said]
        return json.loads(Path("outcome.json").read_text()), said[-1].stdout

    return run


def searches():
    return {path.name for path in Path("artifacts/nightly").glob("search-*")}


def records():
    return {path: path.stat().st_mtime_ns for path in Path("artifacts").rglob("*.json")}


def test_a_push_of_anything_that_the_study_reads_starts_the_workflow():
    """Its data and its base are in the paths, and every variable that a step uses is defined."""
    from fnmatch import fnmatch

    loaded = study.load(EXAMPLE / "study.yaml")
    read = [
        loaded.model.base + "/config.json",
        *(source.uri for source in loaded.data.sources),
        str(EXAMPLE / "study.yaml"),
    ]
    for path in read:
        relative = str(Path(path).relative_to(ROOT))
        assert any(fnmatch(relative, pattern) for pattern in WORKFLOW[True]["push"]["paths"]), relative
    used = {name for step in STEPS for name in re.findall(r"\$([A-Z_]+)", step)}
    assert used <= set(WORKFLOW["env"])


def test_what_changed_is_tuned_again_and_only_what_is_better_becomes_champion(job, tmp_path):
    tmp_path = tmp_path / "clone"
    commit(tmp_path / "src/train.py", "one")
    first, said = job()
    assert first["gate"]["decision"] == "promote"
    assert said.startswith("promote: nightly-adapter version 1")
    assert len(searches()) == 1

    commit(tmp_path / "README.md", "a change that no study depends on")
    before = records()
    assert job()[0] == first
    assert records() == before

    commit(tmp_path / "src/train.py", "two")
    again, _ = job()
    assert len(searches()) == 2
    assert (
        again["gate"]["decision"] == "same"
    )  # the same setting gives the same adapter: it is the champion already
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db", f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("nightly").experiment_id
    runs = client.search_runs([experiment], "tags.git_commit LIKE '%'")
    head = subprocess.run(
        ["git", "log", "-2", "--format=%H", "--", "src"], capture_output=True, text=True, check=True
    )
    assert {run.data.tags["git_commit"] for run in runs} == set(head.stdout.split())

    data = tmp_path / "examples/data/alpaca-demo.json"
    content = json.loads(data.read_text())
    data.write_text(json.dumps(content[: len(content) // 2]))  # at night, without a commit
    third, _ = job()
    assert len(searches()) == 3
    assert third["selection"] != again["selection"]
    champion = [rule for rule in third["gate"]["rules"] if rule["rule"] == "better than champion"]
    assert champion[0]["reference"] is not None  # measured on the new study's data
    assert champion[0]["least"] == 0.01
