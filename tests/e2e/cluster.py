"""A namespace of a real cluster through kubectl and Helm, as an administrator uses them."""

import base64
import json
import re
import subprocess
import time
from contextlib import contextmanager

import boto3
import pytest

from tests.conftest import ROOT
from tests.e2e.objects import INPUTS, KEYS, storage

LABEL = "katib.kubeflow.org/metrics-collector-injection=enabled"


class Cluster:
    """A namespace, made and removed by the tests."""

    def __init__(self, kubectl, helm, namespace):
        self.programs = {"kubectl": kubectl, "helm": helm}
        self.namespace = namespace

    def run(self, program, *words, stdin=None, namespaced=True, cwd=ROOT, fails=False, timeout=1500):
        """Run kubectl or Helm to its end and return what it printed; `fails` says that it must."""
        place = ["--namespace", self.namespace] if namespaced else []
        command = [self.programs[program], *place, *words]
        done = subprocess.run(command, input=stdin, cwd=cwd, capture_output=True, text=True, timeout=timeout)
        printed = done.stdout + done.stderr if fails else done.stdout
        assert (done.returncode != 0) == fails, (
            f"{program} {' '.join(words)}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
        return printed

    def kubectl(self, *words, **options):
        return self.run("kubectl", *words, **options)

    def helm(self, *words, **options):
        return self.run("helm", *words, **options)

    def create(self):
        """Make the namespace, as docs/install.md says."""
        self.kubectl("create", "namespace", self.namespace, namespaced=False)
        self.kubectl("label", "namespace", self.namespace, LABEL, namespaced=False)

    def end_searches(self):
        """Delete the Experiments, since a release cannot be removed while there are any. Ignores earlier failures."""
        self._try("kubectl", "delete", "experiments", "--all", "--timeout", "1m")

    def remove(self):
        """Remove the release, including its parts in other namespaces, and the namespace. Ignores earlier failures."""
        self._try("helm", "uninstall", "retune", "--wait", "--timeout", "5m")
        self.kubectl(
            "delete", "namespace", self.namespace, "--wait=false", "--ignore-not-found", namespaced=False
        )

    def _try(self, program, *words):
        command = [self.programs[program], "--namespace", self.namespace, *words]
        subprocess.run(command, capture_output=True, timeout=600)

    def apply(self, *documents):
        self.kubectl("apply", "--filename", "-", stdin="\n".join(map(json.dumps, documents)))

    def get(self, kind, name=None, selector=None):
        """One object, or those with a label."""
        if name:
            return json.loads(self.kubectl("get", kind, name, "--output", "json"))
        chosen = ["--selector", selector] if selector else []
        return json.loads(self.kubectl("get", kind, *chosen, "--output", "json"))["items"]

    def trials(self, experiment, state):
        """How many trials of an Experiment are in a state, e.g. ``Succeeded``; 0 before the controller has looked at it."""
        return self.get("experiment", experiment).get("status", {}).get(f"trials{state}", 0)

    def pods(self, selector, phase="Running"):
        """Names of the pods in a phase that nobody is deleting."""
        return [
            pod["metadata"]["name"]
            for pod in self.get("pods", selector=selector)
            if pod["status"].get("phase") == phase and "deletionTimestamp" not in pod["metadata"]
        ]

    def evict(self, pod):
        """Evict a pod, as draining a node does."""
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": self.namespace},
        }
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        self.kubectl("create", "--raw", path, "--filename", "-", stdin=json.dumps(eviction), namespaced=False)

    @contextmanager
    def away(self, deployment):
        """Stop a server, and start it again at the end of the block."""
        self.kubectl("scale", f"deployment/{deployment}", "--replicas", "0")
        self.kubectl("rollout", "status", f"deployment/{deployment}", "--timeout", "2m")
        try:
            yield
        finally:
            self.kubectl("scale", f"deployment/{deployment}", "--replicas", "1")

    @contextmanager
    def forwarded(self, service, port):
        """Yield a local address of a Service."""
        words = [self.programs["kubectl"], "--namespace", self.namespace, "port-forward", f"service/{service}", f":{port}"]  # fmt: skip
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            try:
                line = process.stdout.readline()
                yield "http://127.0.0.1:{}".format(re.search(r"127\.0\.0\.1:(\d+)", line)[1])
            finally:
                process.terminate()

    @contextmanager
    def s3(self):
        """Yield a client of the storage."""
        with self.forwarded("seaweedfs", 9000) as address:
            yield boto3.client(
                "s3", endpoint_url=address, region_name="us-east-1",
                aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"], aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            )  # fmt: skip

    @contextmanager
    def mlflow(self):
        """Yield a client of the release's MLflow, logged in as docs/install.md says."""
        from mlflow import MlflowClient

        data = self.get("secret", "retune-mlflow-login")["data"]
        account = {name: base64.b64decode(value).decode() for name, value in data.items()}
        with self.forwarded("retune-mlflow", 5000) as address, pytest.MonkeyPatch.context() as environment:
            for name, value in account.items():
                environment.setenv(name, value)
            yield MlflowClient(address)

    def store(self):
        """Start an S3 server with the demo's inputs in its bucket."""
        self.apply(*storage())
        self.kubectl("rollout", "status", "deployment/seaweedfs", "--timeout", "10m")
        with self.s3() as s3:
            s3.create_bucket(Bucket="retune")
            for prefix, folder in INPUTS.items():
                for file in folder.iterdir():
                    if file.is_file():
                        s3.upload_file(str(file), "retune", f"{prefix}/{file.name}")

    def ended(self, job):
        """How a Job ended, empty while it runs."""
        conditions = self.get("job", job)["status"].get("conditions", [])
        found = {c["type"] for c in conditions if c["status"] == "True"} & {"Complete", "Failed"}
        return found.pop() if found else ""

    def overview(self):
        return self.kubectl("get", "pods,jobs,experiments,trials,suggestions", "--output", "wide")

    def logs(self, job):
        return self.kubectl("logs", f"job/{job}", "--tail", "-1")

    def outcome(self, job, seconds=1200, meanwhile=lambda: None):
        """Wait until `retune run --json` in a Job has ended, calling `meanwhile` now and then; return what it printed."""
        end = time.monotonic() + seconds
        while not (how := self.ended(job)):
            assert time.monotonic() < end, f"{job} has not ended\n{self.overview()}\n{self.logs(job)}"
            meanwhile()
            time.sleep(1)
        printed = self.logs(job)
        assert how == "Complete", f"{job}: {printed}\n{self.overview()}"
        return json.loads(printed[printed.index("{") :])


def until(condition, seconds=300, what="it"):
    """Wait until `condition()` is true and return its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not come within {seconds} s"
        time.sleep(1)
    return value
