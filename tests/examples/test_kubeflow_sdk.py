"""Our algorithms from Kubeflow's own SDKs, each in an environment of its own, against the simulated cluster."""

import os
import subprocess
import sys

import pytest
from tests.conftest import ROOT, wait_for
from tests.katib_simulator.cluster import NAMESPACE, Cluster

pytestmark = pytest.mark.slow
EXAMPLE = ROOT / "examples/06-kubeflow-sdk"
RUNTIME = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainingRuntime",
    "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {"numProcPerNode": "auto"}},
        "template": {"spec": {"replicatedJobs": [{
            "name": "node",
            "template": {
                "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                "spec": {"template": {"spec": {"containers": [{"name": "node", "image": "pytorch"}]}}},
            },
        }]}},
    },
}  # fmt: skip


@pytest.fixture
def python(tmp_path):
    """Return a function that makes an environment with some packages, and returns its Python."""

    def make(*packages):
        subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
        program = tmp_path / "venv/bin/python"
        words = [program, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{packages} cannot be installed: {done.stderr.strip()[-300:]}")
        return program

    return make


@pytest.fixture
def cluster(tmp_path):
    found = Cluster(tmp_path / "cluster")
    yield found
    found.close()


def call(program, cluster, script, *words):
    env = {**os.environ, "KUBECONFIG": cluster.kubeconfig()}
    env.pop("PYTHONPATH", None)
    done = subprocess.run([program, EXAMPLE / script, *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def suggested(cluster, name):
    """The first settings that our service gave for an Experiment."""

    def found():
        suggestion = cluster.objects.find("suggestions", NAMESPACE, name)
        return suggestion and suggestion.get("status", {}).get("suggestions")

    return [{pair["name"]: pair["value"] for pair in s["parameterAssignments"]} for s in wait_for(found, 120)]


def test_the_optimizer_client_searches_by_our_algorithm(python, cluster):
    program = python("kubeflow==0.5.*")
    cluster.objects.create("trainingruntimes", NAMESPACE, RUNTIME)
    name, *lines = call(program, cluster, "optimize.py")
    assert " ".join(lines) == "MadsGlobal(seed=7)"  # `get_job` reads it back
    spec = cluster.objects.get("experiments", NAMESPACE, name)["spec"]
    assert spec["algorithm"]["algorithmName"] == "mads-global"
    for setting in suggested(cluster, name):
        assert 1e-5 <= float(setting["learning_rate"]) <= 1e-1
        assert setting["rank"] in ("2", "4", "8", "16")


def test_katibs_older_sdk_sends_what_retune_renders(python, cluster, tmp_path):
    program = python("kubeflow-katib==0.19.*", "kubernetes<31")
    text = (ROOT / "k8s/experiments/kind-nomad.yaml").read_text()
    cluster.objects.create("secrets", NAMESPACE, {"metadata": {"name": "retune-storage"}, "data": {}})
    (tmp_path / "experiment.yaml").write_text(text.replace("namespace: retune", f"namespace: {NAMESPACE}"))
    name, algorithm = call(program, cluster, "katib_sdk.py", tmp_path / "experiment.yaml")
    assert algorithm == "nomad"
    assert suggested(cluster, name)
