"""TrainJob trials with Kubeflow Trainer 2 and JobSet, as `tests/e2e/programs.sh` builds them."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from retune.engines.katib import registration
from tests.conftest import ROOT
from tests.e2e.cluster import until
from tests.e2e.objects import start, values

pytestmark = [pytest.mark.cluster, pytest.mark.own]
MANIFESTS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retune/e2e/manifests"
KIND = "TrainJob.v1alpha1.trainer.kubeflow.org"


@pytest.fixture(scope="module")
def trainer(team):
    """JobSet, Trainer and a Katib that supports TrainJobs, installed as docs/install.md says; removed afterwards to free the node."""
    installed = (("jobset", "jobset-system"), ("trainer", "kubeflow-system"))
    for name, place in installed:
        team.kubectl(
            "apply", "--server-side", "--filename", str(MANIFESTS / f"{name}.yaml"), namespaced=False
        )
        # Where an earlier run has scaled it down, a Deployment without pods is Available too.
        team.kubectl(
            "scale", "--namespace", place, "deployment", "--all", "--replicas", "1", namespaced=False
        )
        words = ["wait", "--namespace", place, "--for=condition=Available", "deployment", "--all"]
        team.kubectl(*words, "--timeout", "5m", namespaced=False)
    words = ["configmap", registration.CONFIG_MAP, "--namespace", "kubeflow"]
    found = json.loads(team.kubectl("get", *words, "--output", "json", namespaced=False))
    content = yaml.safe_load(found["data"][registration.KEY])
    kinds = content["init"]["controller"].setdefault("trialResources", [])
    if KIND not in kinds:
        kinds.append(KIND)
        change = json.dumps({"data": {registration.KEY: yaml.safe_dump(content)}})
        team.kubectl("patch", *words, "--type", "merge", "--patch", change, namespaced=False)
    until(lambda: webhook_answers(team), 180, "an answer of Trainer's webhook")
    for step in ("restart", "status"):
        team.kubectl(
            "rollout", step, "--namespace", "kubeflow", "deployment/katib-controller", namespaced=False
        )
    yield
    for _, place in installed:
        team.kubectl(
            "scale", "--namespace", place, "deployment", "--all", "--replicas", "0", namespaced=False
        )


def webhook_answers(team):
    """Trainer's pod is ready before its webhook has a certificate."""
    runtime = yaml.safe_load((ROOT / "k8s/experiments/gpu-runtime.yaml").read_text())
    runtime["metadata"] = {"name": "asked", "namespace": team.namespace}
    asked = [team.programs["kubectl"], "create", "--dry-run=server", "--filename", "-"]
    done = subprocess.run(asked, input=json.dumps(runtime), capture_output=True, text=True)
    return done.returncode == 0


def test_a_study_of_trainjobs_ends_with_a_champion(team, trainer, images):
    words = [
        "--set",
        "trainJob.enabled=true,trainJob.gpus=0,trainJob.cpu=100m,trainJob.memory=2Gi,trainJob.sharedMemory=64Mi",
    ]
    team.helm(
        "upgrade",
        "retune",
        "charts/retune",
        "--wait",
        "--timeout",
        "10m",
        *values(team.namespace, *images),
        *words,
    )
    job = start(
        team, images, "trainjobs", "search.algorithm=lhs", "search.trials=2", "cluster.katib.trial=TrainJob"
    )
    until(lambda: team.get("trainjobs.trainer.kubeflow.org"), 300, "a TrainJob")
    outcome = team.outcome(job)
    assert (outcome["trials"], outcome["failed"]) == (2, 0)
    assert outcome["gate"]["decision"] == "promote"
    # Trainer lets a runtime go that no TrainJob uses, and only while it runs: `helm uninstall --wait` would wait for ever later.
    team.kubectl("delete", "experiments", "--selector", "retune.dev/study=trainjobs")
    team.helm(
        "upgrade", "retune", "charts/retune", "--wait", "--timeout", "10m", *values(team.namespace, *images)
    )
    until(lambda: not team.get("trainingruntimes.trainer.kubeflow.org"), 120, "the end of the runtime")
