"""The chart's network policies where something enforces them: what they allow works, what they deny does not."""

import json

import pytest

from tests.e2e.cluster import until

pytestmark = [pytest.mark.cluster, pytest.mark.own]  # on another's cluster nothing may enforce them

PROBE = """
import json, socket, sys
found = {}
for target in sys.argv[1:]:
    host, port = target.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 4).close()
        found[target] = "open"
    except OSError as error:
        found[target] = type(error).__name__
print(json.dumps(found))
"""


def probe(cluster, image, name, labels, targets):
    """Return, for each target, whether a pod with these labels gets a connection."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "containers": [
                {"name": "probe", "image": image, "command": ["python3", "-c", PROBE, *targets]},
            ],
        },
    }
    cluster.apply(pod)
    until(
        lambda: cluster.get("pod", name)["status"]["phase"] in ("Succeeded", "Failed"),
        120,
        f"the end of pod {name}",
    )
    found = json.loads(cluster.kubectl("logs", name).strip().splitlines()[-1])
    cluster.kubectl("delete", "pod", name, "--wait=false")
    return [found[target] == "open" for target in targets]


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
    targets = [s3, mlflow, database, filer]

    assert probe(team, image, "as-benchmark", step, targets) == [True, True, False, False]
    assert probe(team, image, "as-step", {"retune.dev/step": "mix"}, targets) == [True, True, False, True]
    stranger = namespace("stranger")
    assert probe(stranger, image, "stranger", {}, [mlflow, database, s3, api]) == [False, False, True, True]

    trial = {"app.kubernetes.io/name": "retune", "katib.kubeflow.org/trial": "t"}
    serving = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "as-trial", "labels": trial},
        "spec": {"containers": [{"name": "serve", "image": image, "command": ["python3", "-m", "http.server", "8000"]}]},
    }  # fmt: skip
    plain = json.loads(json.dumps(serving))
    plain["metadata"] = {"name": "no-trial", "labels": {"app": "no-trial"}}
    team.apply(serving, plain)
    team.kubectl("wait", "--for", "condition=Ready", "pod/as-trial", "pod/no-trial", "--timeout", "2m")
    addresses = [f"{team.get('pod', name)['status']['podIP']}:8000" for name in ("no-trial", "as-trial")]
    until(lambda: probe(team, image, "asks-trial", {}, addresses)[0], 60, "the server")
    assert probe(team, image, "asks-trial-too", {}, addresses) == [True, False]
    team.kubectl("delete", "pod", "as-trial", "no-trial", "--wait=false", "--grace-period", "0", "--force")


def pod_address(cluster, selector):
    return cluster.get("pods", selector=selector)[0]["status"]["podIP"]
