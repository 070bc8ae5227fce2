"""The chart's network policies where something enforces them: what they allow works, what they deny does not."""

import json

import pytest

from tests.e2e.cluster import until

pytestmark = [pytest.mark.cluster, pytest.mark.own]  # on another's cluster nothing may enforce them

# Policies take effect a moment after a pod has begun, so it asks again until it finds what is wanted, for a minute.
PROBE = """
import json, socket, sys, time
wanted, end = json.loads(sys.argv[1]), time.monotonic() + 60
while True:
    found = {}
    for target in wanted:
        host, port = target.rsplit(":", 1)
        try:
            socket.create_connection((host, int(port)), 4).close()
            found[target] = True
        except OSError:
            found[target] = False
    if found == wanted or time.monotonic() > end:
        break
    time.sleep(1)
print(json.dumps(found))
"""


def probe(cluster, image, name, labels, wanted):
    """Return the targets that a pod with these labels can connect to; retries until the result is `wanted`, for a while."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "containers": [
                {"name": "probe", "image": image, "command": ["python3", "-c", PROBE, json.dumps(wanted)]},
            ],
        },
    }
    cluster.apply(pod)
    until(
        lambda: cluster.get("pod", name)["status"]["phase"] in ("Succeeded", "Failed"),
        300,
        f"the end of pod {name}",
    )
    found = json.loads(cluster.kubectl("logs", name).strip().splitlines()[-1])
    cluster.kubectl("delete", "pod", name, "--wait=false")
    return found


def test_what_is_denied_fails_and_what_is_allowed_works(team, namespace, images):
    registry, tag = images
    image = f"{registry}/retune-suggestion:{tag}".lstrip("/")
    place = f"{team.namespace}.svc.cluster.local"
    mlflow, database, s3 = (
        f"retune-mlflow.{place}:5000",
        f"retune-postgresql.{place}:5432",
        f"seaweedfs.{place}:9000",
    )
    filer = f"{pod_address(team, 'app=seaweedfs')}:8888"  # a port of the same pod that nobody was given
    api = "kubernetes.default.svc.cluster.local:443"
    step = {"app.kubernetes.io/name": "retune", "retune.dev/step": "benchmark"}
    stranger = namespace("stranger")
    for where, name, labels, wanted in (
        (team, "as-benchmark", step, {s3: True, mlflow: True, database: False, filer: False}),
        (team, "as-step", {"retune.dev/step": "mix"}, {s3: True, mlflow: True, database: False, filer: True}),
        (stranger, "stranger", {}, {mlflow: False, database: False, s3: True, api: True}),
    ):
        assert probe(where, image, name, labels, wanted) == wanted, name

    trial = {"app.kubernetes.io/name": "retune", "katib.kubeflow.org/trial": "t"}
    serving = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "as-trial", "labels": trial},
        "spec": {"containers": [{"name": "serve", "image": image, "command": ["python3", "-m", "http.server", "8000"]}]},
    }  # fmt: skip
    plain = json.loads(json.dumps(serving))
    plain["metadata"] = {"name": "no-trial", "labels": {"app": "no-trial"}}
    team.apply(serving, plain)
    team.kubectl("wait", "--for", "condition=Ready", "pod/as-trial", "pod/no-trial", "--timeout", "2m")
    wanted = {
        f"{team.get('pod', name)['status']['podIP']}:8000": name == "no-trial"
        for name in ("no-trial", "as-trial")
    }
    assert probe(team, image, "asks-trial", {}, wanted) == wanted
    team.kubectl("delete", "pod", "as-trial", "no-trial", "--wait=false", "--grace-period", "0", "--force")


def pod_address(cluster, selector):
    return cluster.get("pods", selector=selector)[0]["status"]["podIP"]
