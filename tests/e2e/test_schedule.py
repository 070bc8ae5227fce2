"""A scheduled retuning fires: the chart's CronJob submits a study to the API of Kubeflow Pipelines, which runs it.

The API is the stand-in of tests/launch, in a pod with the rights of a pipeline's steps: Kubeflow's own cannot be built here.
"""

import json

import pytest
import yaml

from tests.conftest import ROOT
from tests.e2e.cluster import until
from tests.e2e.objects import STUDY, environment, overrides, values

pytestmark = pytest.mark.cluster
SERVER = """
import sys, threading
from pathlib import Path
sys.path.insert(0, "/code")
from kubeflow_server import serve
_, kubeflow, _ = serve(Path("/tmp"), ("0.0.0.0", 8888))
kubeflow.execute = True
threading.Event().wait()
"""


def pipelines(image):
    """The stand-in for Kubeflow Pipelines and its Service."""
    container = {
        "name": "api", "image": image, "command": ["python3", "-c", SERVER], "workingDir": "/tmp",
        "env": [{"name": "HOME", "value": "/tmp"}], "envFrom": environment(),
        "readinessProbe": {"httpGet": {"path": "/apis/v2beta1/healthz", "port": 8888}},
        "volumeMounts": [{"name": "code", "mountPath": "/code"}],
    }  # fmt: skip
    code = (ROOT / "tests/launch/kubeflow_server.py").read_text()
    yield {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "ml-pipeline"},
        "data": {"kubeflow_server.py": code},
    }
    yield {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ml-pipeline", "labels": {"app": "ml-pipeline"}},
        "spec": {"serviceAccountName": "retune", "containers": [container], "volumes": [{"name": "code", "configMap": {"name": "ml-pipeline"}}]},
    }  # fmt: skip
    yield {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "ml-pipeline"},
        "spec": {"selector": {"app": "ml-pipeline"}, "ports": [{"port": 8888}]},
    }  # fmt: skip


def test_a_scheduled_retuning_fires_and_ends_with_a_champion(team, images, tmp_path):
    registry, tag = images
    team.apply(*pipelines(f"{registry}/retune-train:{tag}".lstrip("/")))
    team.kubectl("wait", "--for", "condition=Ready", "pod/ml-pipeline", "--timeout", "3m")
    study = yaml.safe_load(STUDY.read_text())
    more = overrides(
        team.namespace, *images, "weekly", "search.algorithm=lhs", "search.trials=2", "engine.kind=katib"
    )
    schedule = {"name": "weekly", "cron": "* * * * *", "study": study, "overrides": more}
    file = tmp_path / "schedule.yaml"
    host = f"http://ml-pipeline.{team.namespace}.svc.cluster.local:8888"
    file.write_text(yaml.safe_dump({"schedules": {"host": host, "studies": [schedule]}}))
    common = [
        "upgrade",
        "retune",
        "charts/retune",
        "--wait",
        "--timeout",
        "10m",
        *values(team.namespace, *images),
    ]
    team.helm(*common, "--values", str(file))
    fired = until(
        lambda: team.get("jobs", selector="app.kubernetes.io/component=schedule"),
        120,
        "a Job of the schedule",
    )
    name = fired[0]["metadata"]["name"]
    change = json.dumps({"spec": {"suspend": True}})
    team.kubectl("patch", "cronjob", "retune-weekly", "--patch", change)  # once is enough
    until(lambda: team.ended(name), 900, "the end of the scheduled run")
    server = team.kubectl("exec", "ml-pipeline", "--", "sh", "-c", "tail -n 60 /tmp/run-*.log")
    assert team.ended(name) == "Complete", team.logs(name) + server
    (experiment,) = team.get("experiments", selector="retune.dev/study=weekly")
    assert experiment["status"]["trialsSucceeded"] == 2
    team.helm(*common)
    team.kubectl("delete", "pod,service,configmap", "ml-pipeline", "--wait=false")
