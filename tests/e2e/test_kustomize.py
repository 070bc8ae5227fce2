"""Installing without Helm, by the kustomizations of docs/install.md: registration, a namespace, a search, and removal."""

import re
import shutil

import pytest
import yaml

from retune.engines.katib import OURS
from tests.conftest import ROOT
from tests.e2e.cluster import until
from tests.e2e.install_page import PAGE
from tests.e2e.objects import search

pytestmark = pytest.mark.cluster


def registered(place):
    """Our algorithms in Katib's configuration."""
    words = ["get", "configmap", "katib-config", "--namespace", "kubeflow", "--output", "jsonpath={.data.katib-config\\.yaml}"]  # fmt: skip
    config = yaml.safe_load(place.kubectl(*words, namespaced=False))
    return {entry["algorithmName"] for entry in config["runtime"]["suggestions"]} & set(OURS)


def job_ended(place, name):
    words = ["--namespace", "kubeflow", "--for", "condition=Complete", f"job/{name}", "--timeout", "5m"]
    place.kubectl("wait", *words, namespaced=False)


def test_the_way_without_helm(namespace, images, tmp_path):
    place = namespace("kustomize", empty=True)
    registry, tag = images
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.S)
    register, studies = (block for block in blocks if "kind: Kustomization" in block)
    register = register.replace("registry.example/ml", registry).replace("0.1.0", tag)
    unregister = yaml.safe_load(register)
    unregister["resources"] = ["../k8s/katib-config/unregister"]
    del unregister["patches"]
    for name, text in (
        ("register", register),
        ("unregister", yaml.safe_dump(unregister)),
        ("studies", studies.replace("team-a", place.namespace)),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kustomization.yaml").write_text(text)

    def kubectl(verb, name, *more):
        place.kubectl(verb, "--kustomize", name, *more, namespaced=False, cwd=tmp_path)

    kubectl("apply", "studies")
    kubectl("apply", "register")
    job_ended(place, "retune-register")
    assert registered(place) == set(OURS)
    # A search in that namespace, under its rules for pods and for their network.
    search(place, images, "done", "sleep 3; echo loss=1")
    until(lambda: place.trials("done", "Succeeded"), 300, "the end of the search")

    place.kubectl("delete", "job", "retune-register", "--namespace", "kubeflow", namespaced=False)
    kubectl("apply", "register")  # as an upgrade does
    job_ended(place, "retune-register")

    kubectl("apply", "unregister")
    words = [
        "--namespace",
        "kubeflow",
        "--for",
        "condition=Failed",
        "job/retune-unregister",
        "--timeout",
        "5m",
    ]
    place.kubectl("wait", *words, namespaced=False)
    assert registered(place) == set(OURS), "while the finished Experiment is there"
    place.kubectl("delete", "experiment", "done", "--timeout", "2m")
    kubectl("delete", "unregister")
    kubectl("apply", "unregister")
    job_ended(place, "retune-unregister")
    assert registered(place) == set()
    for name in ("unregister", "register", "studies"):
        kubectl("delete", name, "--ignore-not-found", "--wait=false")
