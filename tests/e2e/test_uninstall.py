"""When a release may be removed, and what it leaves behind. The last tests: the others run on that release."""

import json
import re
import time

import pytest
import yaml

from retune.engines.katib import OURS
from tests.e2e.cluster import until
from tests.e2e.objects import search, values

pytestmark = pytest.mark.cluster
KINDS = "all,configmaps,secrets,serviceaccounts,roles,rolebindings,networkpolicies,poddisruptionbudgets,persistentvolumeclaims,resourcequotas"
# Passwords and data stay, as docs/install.md says, and the pods of `helm test`, for their logs.
STAYS = {
    "PersistentVolumeClaim",
    "Secret/retune-postgresql",
    "Secret/retune-mlflow-login",
    "Pod/retune-test-storage",
    "Pod/retune-test-mlflow",
    "Pod/retune-test-katib",
}


def unregistered(team):
    """The output of the Job that unregisters our algorithms."""
    return team.kubectl(
        "logs", "--namespace", "kubeflow", "job/retune-unregister", "--tail", "-1", namespaced=False
    )


def test_removal_is_refused_while_katib_needs_our_algorithms(team, namespace, images):
    """A running Experiment and finished ones, in two namespaces: none may lose its algorithm, and the release keeps working."""
    other = namespace("c")
    search(other, images, "done", "sleep 3; echo loss=1")
    search(team, images, "at-work", "sleep 3600")
    until(lambda: other.trials("done", "Succeeded"), 300, "the end of `done`")
    until(lambda: team.trials("at-work", "Running"), 300, "a trial of `at-work`")

    begun = time.monotonic()
    printed = team.helm("uninstall", "retune", "--timeout", "10m", fails=True)
    assert "retune-unregister" in printed
    assert time.monotonic() - begun < 120, "what is refused is not tried again"
    said = unregistered(team)
    assert f"done (lhs, succeeded): kubectl delete experiments --namespace {other.namespace} done" in said
    assert "at-work (lhs, running)" in said
    # A refused removal is undone as docs/install.md says.
    (last, *_) = json.loads(team.helm("history", "retune", "--max", "1", "--output", "json"))
    team.helm("rollback", "retune", str(last["revision"]), "--wait", "--timeout", "10m")
    assert json.loads(team.helm("status", "retune", "--output", "json"))["info"]["status"] == "deployed"

    more = ["--wait", "--timeout", "10m", "--set", "katib.register.deleteFinished=true"]
    team.helm("upgrade", "retune", "charts/retune", *values(team.namespace, *images), *more)
    team.helm("uninstall", "retune", "--timeout", "10m", fails=True)
    assert other.get("experiments") == [], "the finished one is deleted, in another namespace too"
    ours = [e for e in team.get("experiments") if e["spec"]["algorithm"]["algorithmName"] in OURS]
    assert [e["metadata"]["name"] for e in ours] == ["at-work"], (
        "the running one stays, and those of Katib's own algorithms"
    )
    (command,) = re.findall(r"(?<=at-work \(lhs, running\): kubectl ).*", unregistered(team))
    team.kubectl(*command.split(), "--timeout", "2m", namespaced=False)


def test_nothing_is_left_that_should_not_be(team):
    team.helm("uninstall", "retune", "--wait", "--timeout", "10m")
    left = {
        f"{found['kind']}/{found['metadata']['name']}"
        for found in team.get(KINDS, selector="app.kubernetes.io/instance=retune")
        if "deletionTimestamp" not in found["metadata"]
    }
    assert {name for name in left if name not in STAYS and name.split("/")[0] not in STAYS} == set()
    words = [
        "get",
        "clusterroles,clusterrolebindings",
        "--selector",
        "app.kubernetes.io/instance=retune",
        "--output",
        "json",
    ]
    of_the_cluster = json.loads(team.kubectl(*words, namespaced=False))["items"]
    assert [found for found in of_the_cluster if team.namespace in found["metadata"]["name"]] == []
    words = [
        "get",
        "roles,rolebindings",
        "--namespace",
        "kubeflow",
        "--selector",
        "app.kubernetes.io/instance=retune",
        "--output",
        "json",
    ]
    in_katibs = json.loads(team.kubectl(*words, namespaced=False))["items"]
    assert [found for found in in_katibs if team.namespace in found["metadata"]["name"]] == []
    words = ["get", "configmap", "katib-config", "--namespace", "kubeflow", "--output", "json"]
    config = json.loads(team.kubectl(*words, namespaced=False))["data"]["katib-config.yaml"]
    known = {entry["algorithmName"] for entry in yaml.safe_load(config)["runtime"]["suggestions"]}
    assert known & set(OURS) == set()
    assert known, "Katib's own algorithms are still there"
    # The command that docs/install.md gives for the rest.
    kinds = "persistentvolumeclaims,pods,secrets"
    team.kubectl("delete", kinds, "--selector", "app.kubernetes.io/instance=retune")
