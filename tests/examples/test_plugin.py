"""The fifth example: a package in a fresh environment adds one of each, passes retune's contracts, and a study uses all four."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from tests.conftest import ROOT

import retune

pytestmark = pytest.mark.slow
EXAMPLE = ROOT / "examples/05-plugin"


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The Python of a fresh environment in which the package is installed, beside this environment's packages."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    paths = [path for path in sys.path if path.endswith("site-packages")]
    (site / "ours.pth").write_text("\n".join([str(Path(retune.__file__).parents[1]), *paths]))
    copy = folder / "package"
    shutil.copytree(EXAMPLE, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, copy]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    shutil.unpack_archive(wheel, site, "zip")  # which is what an installer does with a wheel of pure Python
    return python


def test_a_study_uses_all_four(python, tmp_path):
    command = [python, "-m", "retune", "run", EXAMPLE / "study.yaml", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["trials"] == 4
    assert outcome["selection"]["tasks"] == ["arithmetic"]
    records = [json.loads(path.read_text()) for path in Path(outcome["folder"]).glob("trials/*/trial.json")]
    assert len(records) == 5
    assert all(record["status"] == "completed" for record in records)
    assert not list(tmp_path.glob("artifacts/plugin/logs/worker-*"))  # no process of ours trained


def test_the_package_passes_the_contracts(python):
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLE]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout


def test_without_the_package_its_names_are_unknown(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "retune", "validate", EXAMPLE / "study.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    for name in ("hill-climbing", "arithmetic", "tab-pairs", "inline"):
        assert f"unknown name '{name}'" in done.stderr
