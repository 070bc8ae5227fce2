"""The compiled pipelines: they are what the code says, and nothing that decides a result comes by the environment."""

from pathlib import Path

import pytest
import yaml

import retune.pipelines
from retune.pipelines.compiled import PIPELINES, compile_pipeline

FOLDER = Path(retune.pipelines.__file__).parent


@pytest.mark.parametrize("name", PIPELINES)
def test_the_golden_file_is_what_the_code_compiles_to(name, tmp_path):
    compile_pipeline(name, tmp_path / "new.yaml")
    golden = (FOLDER / f"{name}.yaml").read_text()
    assert (tmp_path / "new.yaml").read_text() == golden, "run `make pipelines` and read the difference"


@pytest.mark.parametrize("name", PIPELINES)
def test_nothing_comes_by_the_environment(name):
    spec = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    executors = spec["deploymentSpec"]["executors"]
    assert executors
    for executor in executors.values():
        assert "env" not in executor["container"]


def test_only_the_steps_that_their_arguments_decide_are_cached():
    spec = yaml.safe_load((FOLDER / "search.yaml").read_text())
    tasks = {**spec["root"]["dag"]["tasks"], **spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]}
    cached = {name for name, task in tasks.items() if task.get("cachingOptions", {}).get("enableCache")}
    assert cached == {"mix", "benchmark"}


def test_the_report_runs_whatever_happens():
    spec = yaml.safe_load((FOLDER / "search.yaml").read_text())
    task = spec["root"]["dag"]["tasks"]["report"]
    assert task["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
