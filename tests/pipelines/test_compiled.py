"""The compiled components and pipelines: they match the code, and nothing that affects results comes from the environment."""

import functools
import http.server
import subprocess
import sys
import threading
import zipfile

import pytest
import yaml

from pipelines.__main__ import COMPONENTS, PIPELINES, compile_all
from retune.launch.compiled import PIPELINES as LAUNCHED
from retune.launch.compiled import compiled
from tests.conftest import ROOT

FOLDER = ROOT / "pipelines"


def test_the_golden_files_are_what_the_code_compiles_to(tmp_path):
    written = [path.relative_to(tmp_path) for path in compile_all(tmp_path)]
    assert len(written) == len(COMPONENTS) + len(PIPELINES) == 13
    for path in written:
        assert (tmp_path / path).read_text() == (ROOT / path).read_text(), (
            f"{path}: run `make pipelines`, read the difference"
        )


@pytest.fixture(scope="module")
def served():
    """The repository over HTTP, as a code host serves its files."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=ROOT)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_is_loaded_from_a_url(served, name):
    from kfp import components

    loaded = components.load_component_from_url(f"{served}/components/{name}/component.yaml")
    assert loaded.name == name.replace("_", "-")
    assert loaded.component_spec.inputs["study" if name != "mix" else "recipe"].type == "String"
    path = ROOT / "components" / name / "component.yaml"
    assert components.load_component_from_file(str(path)).component_yaml == loaded.component_yaml


def test_kfp_still_refuses_file_urls():
    """As docs/pipelines.md and docs/decisions.md say; once KFP takes them, the pages change."""
    from kfp import components
    from requests.exceptions import InvalidSchema

    path = ROOT / "components" / "train" / "component.yaml"
    with pytest.raises(InvalidSchema, match="No connection adapters"):
        components.load_component_from_url(path.as_uri())


def test_what_is_compiled_is_what_is_launched():
    assert LAUNCHED == PIPELINES
    assert [compiled(name).resolve() for name in LAUNCHED] == [FOLDER / f"{name}.yaml" for name in PIPELINES]


@pytest.mark.slow
def test_the_wheel_carries_the_compiled_pipelines(tmp_path):
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        for name in PIPELINES:
            assert content.read(f"retune/launch/{name}.yaml") == (FOLDER / f"{name}.yaml").read_bytes()


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
