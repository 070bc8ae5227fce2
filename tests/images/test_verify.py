"""An image contains only package files whose hashes are in this repository, or is not built."""

import importlib.util
import re
import subprocess

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
    for beside_torch in (False, True):
        assert "evil==1.0 is not in hashes.txt" in verify.problems(report, KNOWN, beside_torch)[0]


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


def test_torch_of_the_usual_index_is_pinned_with_its_cuda_libraries():
    pins = [line for line in (ROOT / "images/cuda.txt").read_text().splitlines() if "==" in line]
    assert {verify._key(*pin.split("==")) for pin in pins} <= KNOWN.keys()
    assert any(pin.startswith("nvidia-cublas==") for pin in pins)
    evil = {"metadata": {"name": "nvidia-cublas", "version": "0.0.1"}, "is_direct": False,
            "download_info": {"url": "https://index/y.whl", "archive_info": {"hashes": {"sha256": "0" * 64}}}}  # fmt: skip
    torch = next(key for key in KNOWN if key.startswith("torch=="))
    sha256 = sorted(KNOWN[torch])[0]
    usual = installed(name="torch", version=torch.split("==")[1], sha256=sha256)
    assert verify.problems(usual, KNOWN, True) == []
    usual["install"].append(evil)
    (problem,) = verify.problems(usual, KNOWN, True)
    assert "nvidia-cublas==0.0.1 is not in hashes.txt" in problem
    variant = installed(name="torch", version=torch.split("==")[1] + "+cu128", sha256="1" * 64)
    variant["install"].append(evil)
    assert verify.problems(variant, KNOWN, True) == []
    assert len(verify.problems(variant, KNOWN, False)) == 2


def release_step(name):
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yaml").read_text())["jobs"]
    return jobs, next(step for step in jobs["images"]["steps"] if step.get("name") == name)


@pytest.mark.parametrize("image", ["suggestion", "train", "eval"])
@pytest.mark.parametrize("pinned", [False, True])
def test_a_release_builds_on_the_digest_that_the_registry_gives(image, pinned, tmp_path):
    """The workflow's own shell, with a stand-in for docker: no registry can be reached here."""
    jobs, step = release_step("the base image by its digest")
    digest = "sha256:" + "a" * 64
    (tmp_path / "docker").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho {digest}\n')
    (tmp_path / "docker").chmod(0o755)
    text = (ROOT / f"Dockerfile.{image}").read_text()
    base = re.search(r"^ARG BASE_IMAGE=(\S+)$", text, re.M)[1]
    if pinned:
        text = text.replace(base, f"{base}@sha256:{'b' * 64}", 1)
    (tmp_path / f"Dockerfile.{image}").write_text(text)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "GITHUB_OUTPUT": str(tmp_path / "out")}
    script = step["run"].replace("${{ matrix.image }}", image)
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_text() == f"image={base}@{digest}\n"
    assert f"imagetools inspect {base} " in (tmp_path / "asked").read_text()
    assert ("::warning::" in done.stdout) == pinned
    build = next(step for step in jobs["images"]["steps"] if "build-push-action" in step.get("uses", ""))
    assert build["with"]["build-args"] == "BASE_IMAGE=${{ steps.base.outputs.image }}"


def test_a_release_without_a_digest_is_not_built(tmp_path):
    _, step = release_step("the base image by its digest")
    (tmp_path / "docker").write_text("#!/bin/sh\nexit 0\n")  # a registry that says nothing
    (tmp_path / "docker").chmod(0o755)
    (tmp_path / "Dockerfile.train").write_text("ARG BASE_IMAGE=r/python:3\n")
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "GITHUB_OUTPUT": str(tmp_path / "out")}
    script = step["run"].replace("${{ matrix.image }}", "train")
    done = subprocess.run(["bash", "-eo", "pipefail", "-c", script], cwd=tmp_path, env=env)
    assert done.returncode != 0
    assert not (tmp_path / "out").exists()
