"""The whole of it on a real cluster: the chart, a study under Katib that pods are taken from, the champion in MLflow.

KUBECONFIG names the cluster. Katib 0.19 must be there in the namespace `kubeflow`, without our algorithms, and the images
where its nodes find them: those of `make images` below `$RETUNE_E2E_REGISTRY` (default `localhost`, as on kind) with the tag
`$RETUNE_E2E_TAG` (default: the version). No GPU is needed, and no Pipelines. Everything made is removed again.
"""

import json
import os
import re
import secrets
import subprocess
import time
from contextlib import contextmanager

import boto3
import pytest

import retune
from tests.conftest import ROOT
from tests.e2e.objects import INPUTS, KEYS, run_job, storage, values

pytest_plugins = ["tests.charts.helm", "tests.k8s.kubectl"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        "KUBECONFIG" not in os.environ, reason="a cluster with Katib is needed: set KUBECONFIG, see tests/e2e/test_cluster.py"
    ),
]  # fmt: skip
IMAGES = (
    os.environ.get("RETUNE_E2E_REGISTRY", "localhost"),
    os.environ.get("RETUNE_E2E_TAG", retune.__version__),
)


class Cluster:
    """A namespace of a cluster, through kubectl."""

    def __init__(self, program, namespace):
        self._program, self.namespace = program, namespace

    def kubectl(self, *words, stdin=None, namespaced=True):
        place = ["--namespace", self.namespace] if namespaced else []
        done = subprocess.run(
            [self._program, *place, *words], input=stdin, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout

    def apply(self, *documents):
        self.kubectl("apply", "--filename", "-", stdin="\n".join(map(json.dumps, documents)))

    def pods(self, selector, phase="Running"):
        found = json.loads(self.kubectl("get", "pods", "--selector", selector, "--output", "json"))["items"]
        return [pod["metadata"]["name"] for pod in found if pod["status"].get("phase") == phase]

    def evict(self, pod):
        """Take a pod away as a drained node does."""
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": self.namespace},
        }
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        self.kubectl("create", "--raw", path, "--filename", "-", stdin=json.dumps(eviction), namespaced=False)

    @contextmanager
    def forwarded(self, service, port):
        """Yield a local address of a Service."""
        words = [
            self._program,
            "--namespace",
            self.namespace,
            "port-forward",
            f"service/{service}",
            f":{port}",
        ]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            try:
                line = process.stdout.readline()
                yield "http://127.0.0.1:{}".format(re.search(r"127\.0\.0\.1:(\d+)", line)[1])
            finally:
                process.terminate()


@pytest.fixture(scope="module")
def cluster(kubectl, helm):
    """A fresh namespace with storage, the demo's inputs in it, and the chart."""
    made = Cluster(kubectl, f"retune-e2e-{secrets.token_hex(3)}")
    run_helm = [helm._program, "--namespace", made.namespace]
    made.kubectl("create", "namespace", made.namespace, namespaced=False)
    try:
        label = "katib.kubeflow.org/metrics-collector-injection=enabled"
        made.kubectl("label", "namespace", made.namespace, label, namespaced=False)
        made.apply(*storage())
        made.kubectl("rollout", "status", "deployment/minio", "--timeout", "10m")
        upload(made)
        words = [
            "install",
            "retune",
            "charts/retune",
            "--wait",
            "--timeout",
            "20m",
            *values(made.namespace, *IMAGES),
        ]
        subprocess.run([*run_helm, *words], check=True, cwd=ROOT)
        subprocess.run([*run_helm, "test", "retune", "--logs"], check=True)
        yield made
        subprocess.run([*run_helm, "uninstall", "retune", "--wait"], check=True)
    finally:
        made.kubectl("delete", "namespace", made.namespace, "--wait=false", namespaced=False)


def upload(cluster):
    with cluster.forwarded("minio", 9000) as address:
        s3 = boto3.client(
            "s3", endpoint_url=address, region_name="us-east-1",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"], aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip
        s3.create_bucket(Bucket="retune")
        for prefix, folder in INPUTS.items():
            for file in folder.iterdir():
                if file.is_file():
                    s3.upload_file(str(file), "retune", f"{prefix}/{file.name}")


def ended(cluster, job):
    found = json.loads(cluster.kubectl("get", "job", job, "--output", "json"))["status"]
    return [c["type"] for c in found.get("conditions", []) if c["status"] == "True"]


@pytest.mark.parametrize("algorithm", ["nomad", "tpe"])
def test_a_study_that_pods_are_taken_from_ends_with_a_champion(cluster, algorithm):
    job = f"run-{algorithm}"
    cluster.apply(*run_job(cluster.namespace, *IMAGES, algorithm))
    taken, until = (
        {"katib.kubeflow.org/trial": [], "katib.kubeflow.org/deployment": []},
        time.monotonic() + 1800,
    )
    while not (conditions := ended(cluster, job)):
        assert time.monotonic() < until, cluster.kubectl(
            "get", "pods,experiments,trials,suggestions", "--output", "wide"
        )
        for label, pods in taken.items():
            there = [] if pods else cluster.pods(label)
            if there:
                cluster.evict(there[0])
                pods.append(there[0])
        time.sleep(2)
    printed = cluster.kubectl("logs", f"job/{job}")
    assert "Complete" in conditions, printed
    assert all(taken.values()), (
        f"a trial and the suggestion service were to lose a pod each, but only {taken}"
    )
    outcome = json.loads(printed[printed.index("{") :])
    assert outcome["gate"]["decision"] == "promote"
    assert outcome["trials"] >= 4
    with cluster.forwarded("retune-mlflow", 5000) as address:
        from mlflow import MlflowClient

        champion = MlflowClient(address).get_model_version_by_alias(f"e2e-{algorithm}", "champion")
    assert champion.version == "1"
