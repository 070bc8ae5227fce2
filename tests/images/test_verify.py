"""Images hold the very files that this repository names by hash, or are not built."""

import importlib.util
import re

import pytest
import yaml

from tests.conftest import ROOT

spec = importlib.util.spec_from_file_location("verify", ROOT / "images" / "verify.py")
verify = importlib.util.module_from_spec(spec)
spec.loader.exec_module(verify)
KNOWN = verify.pinned((ROOT / "images" / "hashes.txt").read_text())


def installed(name="click", version=None, sha256=None, **changes):
    key = next(key for key in KNOWN if key.startswith("click=="))
    found = sorted(KNOWN[key])[0] if sha256 is None else sha256
    item = {
        "download_info": {"url": "https://index/x.whl", "archive_info": {"hashes": {"sha256": found}}},
        "is_direct": False, "metadata": {"name": name, "version": version or key.split("==")[1]},
    }  # fmt: skip
    return {"install": [item | changes]}


def test_every_version_of_the_constraints_has_its_hashes():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {verify._key(*re.split("==", line.partition(";")[0].strip())) for line in lines if "==" in line}
    assert pins <= KNOWN.keys()
    assert all(KNOWN[pin] for pin in pins)


def test_what_is_listed_passes():
    assert verify.problems(installed(), KNOWN, False) == []
    assert verify.problems(installed(name="Click"), KNOWN, False) == []


@pytest.mark.parametrize("sha256", ["0" * 64, "", None])
def test_another_file_of_that_version_does_not(sha256):
    report = installed(sha256=sha256 or "0")
    if sha256 is None:
        report["install"][0]["download_info"].pop("archive_info")
    (problem,) = verify.problems(report, KNOWN, True)
    assert "hashes.txt does not list" in problem


def test_a_package_that_is_not_listed():
    report = installed(name="evil", version="1.0")
    assert "evil==1.0 is not in hashes.txt" in verify.problems(report, KNOWN, False)[0]
    assert verify.problems(report, KNOWN, True) == []


def test_our_own_wheel_is_built_here():
    own = {"is_direct": True, "download_info": {"url": "file:///build/dist/retune-0.1.0-py3-none-any.whl"}}
    assert verify.problems(installed(name="retune", version="0.1.0", **own), KNOWN, False) == []


def test_every_installation_in_an_image_is_verified():
    for file in ROOT.glob("Dockerfile.*"):
        text = file.read_text().replace("\\\n", " ")
        for command in re.findall(r"^RUN .*pip.* install .*$", text, re.M):
            assert "verify.py" in command, (file.name, command)
    assert "verify.py" in (ROOT / "images" / "install").read_text()


def workflows():
    return [*ROOT.glob(".github/workflows/*.yaml"), *ROOT.glob("examples/**/workflow*.yaml")]


@pytest.mark.parametrize("path", workflows(), ids=lambda path: path.name)
def test_workflows_say_what_they_may_do(path):
    workflow = yaml.safe_load(path.read_text())
    assert "permissions" in workflow, "without it a job may write to the repository"
    assert workflow["permissions"] in ({}, {"contents": "read"})
    assert "pull_request_target" not in path.read_text()
    for match in re.findall(r"run: [|]?(.*?)(?=\n      - |\n\S|\Z)", path.read_text(), re.S):
        assert "github.event" not in match, "a title of somebody's would become part of a command"


def test_a_release_has_its_bill_of_materials_and_provenance():
    text = (ROOT / ".github/workflows/release.yaml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    assert (
        jobs["images"]["permissions"]["attestations"]
        == jobs["wheel"]["permissions"]["attestations"]
        == "write"
    )
    build = next(step for step in jobs["images"]["steps"] if "build-push-action" in step.get("uses", ""))
    assert build["with"]["sbom"] is True
    assert build["with"]["provenance"] == "mode=max"
    assert (
        "@sha256" in build["with"]["build-args"] or "steps.base.outputs.image" in build["with"]["build-args"]
    )
