"""What a removed release leaves behind. The last test: the others run on that release."""

import json

import pytest
import yaml

from retune.engines.katib import OURS

pytestmark = pytest.mark.cluster
KINDS = "all,configmaps,secrets,serviceaccounts,roles,rolebindings,networkpolicies,poddisruptionbudgets,persistentvolumeclaims,resourcequotas"
# Passwords and data stay, as docs/install.md says, and the pods of `helm test`, for their logs.
STAYS = {
    "PersistentVolumeClaim",
    "Secret/retune-postgresql",
    "Pod/retune-test-storage",
    "Pod/retune-test-mlflow",
    "Pod/retune-test-katib",
}


def test_nothing_is_left_that_should_not_be(team):
    for experiment in team.get("experiments"):
        team.kubectl("delete", "experiment", experiment["metadata"]["name"])
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
    # The two commands that docs/install.md gives for the rest.
    team.kubectl("delete", "persistentvolumeclaims,pods", "--selector", "app.kubernetes.io/instance=retune")
    team.kubectl("delete", "secret", "retune-postgresql")
