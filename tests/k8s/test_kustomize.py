"""The manifests for those who do not use Helm: the chart's, in kustomizations that real kubectl builds."""

import copy
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.charts.helm import find, pods
from tests.charts.network import Pod, connects, outside
from tests.charts.pod_security import violations
from tests.charts.rights import grants
from tests.conftest import ROOT
from tests.katib_simulator import admission
from tests.katib_simulator.objects import Objects, Refused
from tests.kubernetes_schemas import VERSIONS, problems

pytest_plugins = ["tests.charts.helm", "tests.k8s.kubectl"]
K8S = ROOT / "k8s"
KUSTOMIZATIONS = sorted(str(file.parent.relative_to(K8S)) for file in K8S.rglob("kustomization.yaml"))
EXPERIMENTS = sorted(file for file in K8S.glob("experiments/*.yaml") if not file.stem.startswith("study-"))
BENCHMARK = {"app.kubernetes.io/name": "retune", "retune.dev/step": "benchmark"}
TRIAL = {"app.kubernetes.io/name": "retune", "katib.kubeflow.org/trial": "a-1"}


@pytest.fixture
def overlay(kustomize, tmp_path):
    """Return a function that builds a kustomization of a user's own, given its keys, on top of one of ours."""

    def build(base, **keys):
        shutil.copytree(K8S, tmp_path / "k8s", dirs_exist_ok=True)
        (tmp_path / "own").mkdir(exist_ok=True)
        content = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": [f"../k8s/{base}"], **keys,
        }  # fmt: skip
        (tmp_path / "own/kustomization.yaml").write_text(yaml.safe_dump(content))
        return kustomize(tmp_path / "own")

    return build


@pytest.mark.slow
def test_the_generated_files_are_what_chart_and_program_say(helm):
    words = [sys.executable, str(K8S / "generate.py"), "--check", "--helm", helm._program]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + f"\nHelm: {helm._program}"


def test_there_is_a_kustomization_for_each_purpose():
    wanted = {"base", "katib-config/register", "katib-config/unregister", "overlays/gpu", "overlays/kind"}
    assert wanted <= set(KUSTOMIZATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]], ids=lambda version: "{}.{}".format(*version))
@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_kubernetes_takes_every_object(kustomize, folder, version):
    found = [problem for document in kustomize(K8S / folder) for problem in problems(document, version)]
    assert found == []


@pytest.mark.parametrize("folder", ["katib-config/register", "katib-config/unregister"])
def test_the_jobs_keep_to_the_strictest_pod_security(kustomize, folder):
    ((_, _, spec),) = pods(kustomize(K8S / folder))
    assert violations(spec) == []


@pytest.mark.parametrize("folder", ["overlays/kind", "overlays/gpu", "katib-config/register"])
def test_everything_moves_to_another_namespace(overlay, folder):
    for document in overlay(folder, namespace="team-a"):
        meta, kind = document["metadata"], document["kind"]
        assert kind.startswith("Cluster") or "team-a" in (meta.get("namespace"), meta["name"]), (kind, meta)
        assert {subject["namespace"] for subject in document.get("subjects", [])} <= {"team-a"}


@pytest.mark.parametrize("folder", ["overlays/kind", "overlays/gpu"])
def test_katib_takes_the_namespace_and_it_is_not_left_open(kustomize, folder):
    labels = find(kustomize(K8S / folder), "Namespace", "retune")["metadata"]["labels"]
    assert labels["katib.kubeflow.org/metrics-collector-injection"] == "enabled"
    assert labels["pod-security.kubernetes.io/enforce"] == "baseline"
    assert labels["pod-security.kubernetes.io/warn"] == "restricted"


def test_an_overlay_adds_no_rights(kustomize):
    base, gpu, kind = (
        grants(kustomize(K8S / folder), "retune", "retune")
        for folder in ("base", "overlays/gpu", "overlays/kind")
    )
    assert base == gpu == kind
    assert set(base) == {"retune"}
    assert ("kubeflow.org", "experiments", "*", "create") in base["retune"]


@pytest.mark.parametrize(
    ("folder", "storage", "api"),
    [
        ("overlays/kind", (Pod({}, "seaweedfs"), 8333), ("172.18.0.2", 6443)),
        ("overlays/gpu", (outside("10.0.32.7"), 443), ("10.0.0.1", 443)),
    ],
)
def test_benchmarks_reach_storage_mlflow_and_pipelines_only(kustomize, folder, storage, api):
    policies = [document for document in kustomize(K8S / folder) if document["kind"] == "NetworkPolicy"]

    def reaches(target, port, labels=BENCHMARK):
        return connects(policies, Pod(labels, "retune"), target, port, home="retune")

    assert reaches(*storage)
    assert reaches(outside(api[0]), api[1])
    assert reaches(Pod({}, "mlflow"), 5000)
    assert reaches(Pod({}, "kubeflow"), 8887)
    assert not reaches(outside("192.0.2.1"), 443)
    assert not reaches(Pod({}, "default"), 8080)
    assert not reaches(Pod({}, "mlflow"), 22)
    assert not reaches(Pod(BENCHMARK, "retune"), 443)
    assert reaches(outside("192.0.2.1"), 443, TRIAL)  # a trial may read its base from a hub


def test_the_kustomizations_on_the_installation_page_set_images_and_namespace(overlay):
    block, studies = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/install.md").read_text(), re.S)
    (resource,) = yaml.safe_load(block)["resources"]
    documents = overlay(resource.removeprefix("../k8s/"), **yaml.safe_load(block))
    (container,) = find(documents, "Job", "retune-register")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/ml/retune-train:0.1.0"
    assert container["command"][3:5] == ["--image", "registry.example/ml/retune-suggestion:0.1.0"]
    (resource,) = yaml.safe_load(studies)["resources"]
    documents = overlay(resource.removeprefix("../k8s/"), **yaml.safe_load(studies))
    assert find(documents, "Namespace", "team-a")
    assert {d["metadata"]["namespace"] for d in documents if d["kind"] != "Namespace"} == {"team-a"}


def test_the_storage_keys_are_where_studies_look(kustomize):
    secret = find(kustomize(K8S / "overlays/kind"), "Secret", "retune-storage")
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"} <= set(secret["data"])
    study = yaml.safe_load((K8S / "experiments/study-kind.yaml").read_text())
    assert study["cluster"]["secrets"] == ["retune-storage"]


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_katib_and_kubernetes_take_the_example_experiments(file):
    document = yaml.safe_load(file.read_text())
    assert problems(document, VERSIONS[-1]) == []
    assert document["metadata"]["namespace"] == "retune"
    if document["kind"] != "Experiment":
        return
    admitted = copy.deepcopy(document)
    admitted["metadata"]["name"] = "example"
    admission.admit(_katib("tpe", "nomad"), admitted, None)
    with pytest.raises(Refused):
        admission.admit(_katib("random"), admitted, None)


def _katib(*algorithms):
    """A Katib that knows some algorithms."""
    objects = Objects()
    entries = [{"algorithmName": name, "image": "image"} for name in algorithms]
    config = yaml.safe_dump({"runtime": {"suggestions": entries}, "init": {}})
    objects.create(
        "configmaps",
        "kubeflow",
        {"metadata": {"name": "katib-config"}, "data": {"katib-config.yaml": config}},
    )
    return objects
