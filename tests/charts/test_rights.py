"""RBAC: exactly what is listed here, and enough for what runs under it."""

import pytest
import yaml

from tests.charts.helm import SETS
from tests.charts.rights import grants, hold

pytest_plugins = ["tests.charts.helm", "tests.katib_simulator.runs"]


def of(group, resource, *verbs, name="*"):
    return {(group, resource, name, verb) for verb in verbs}


CONFIG = {
    "kubeflow": of("", "configmaps", "get", "update", name="katib-config"),
    "*": of("kubeflow.org", "experiments", "list"),
}
ENGINE = (
    of("kubeflow.org", "experiments", "create", "get", "list", "patch", "delete")
    | of("kubeflow.org", "trials", "list")
    | of("kubeflow.org", "suggestions", "get")
    | of("batch", "jobs", "create", "list", "delete")
)
PIPELINES = (
    of("argoproj.io", "workflowtaskresults", "create", "patch")
    | of("", "configmaps", "get", name="kfp-launcher")
    | of("", "secrets", "get", name="mlpipeline-minio-artifact")
)
SUGGESTION = of("kubeflow.org", "trials", "get") | of("kubeflow.org", "trials/status", "patch")
LISTED = {
    "defaults": {"retune": {"team-a": ENGINE | PIPELINES}, "retune-katib-config": CONFIG},
    "small": {"retune": {"team-a": ENGINE | PIPELINES}, "retune-katib-config": CONFIG},
    "production": {
        "retune": {"team-a": ENGINE | PIPELINES},
        "retune-katib-config": CONFIG,
        "retune-suggestion": {"team-a": SUGGESTION},
    },
    "everything off": {},
    "MLflow elsewhere": {"retune": {"team-a": ENGINE}, "retune-katib-config": CONFIG},
    "own passwords": {
        "retune": {"team-a": ENGINE | PIPELINES},
        "retune-katib-config": {"katib": CONFIG["kubeflow"], "*": CONFIG["*"]},
    },
}


@pytest.mark.parametrize("name", SETS)
def test_no_account_may_do_more_than_is_listed(rendered, name):
    bindings = [d for d in rendered[name] if d["kind"].endswith("RoleBinding")]
    accounts = {subject["name"] for binding in bindings for subject in binding["subjects"]}
    kinds = {(s["kind"], s["namespace"]) for binding in bindings for s in binding["subjects"]}
    assert kinds <= {("ServiceAccount", "team-a")}
    assert {account: grants(rendered[name], account) for account in accounts} == LISTED[name]


@pytest.mark.parametrize("name", SETS)
def test_every_role_is_bound_and_every_account_is_there(rendered, name):
    documents = rendered[name]
    roles = {(d["kind"], d["metadata"]["name"]) for d in documents if d["kind"] in ("Role", "ClusterRole")}
    bound = {
        (d["roleRef"]["kind"], d["roleRef"]["name"]) for d in documents if d["kind"].endswith("RoleBinding")
    }
    assert roles == bound
    made = {d["metadata"]["name"] for d in documents if d["kind"] == "ServiceAccount"}
    from tests.charts.helm import pods

    used = {spec["serviceAccountName"] for _, _, spec in pods(documents)}
    assert used - made == ({"retune"} if name == "everything off" else set())
    assert made - used <= {"retune-suggestion", "retune"}  # of pods that Katib and Pipelines make


def test_a_study_runs_under_them_from_the_first_trial_to_the_removal(rendered, cluster, run_on):
    """The real engine against an API that refuses what the Role `retune-study` does not grant."""
    asked = hold(cluster.api, grants(rendered["MLflow elsewhere"], "retune"))
    run = run_on("cluster.katib.keep=false", "search.algorithm=retune-random")
    assert {record.status for record in run.records.values()} == {"completed"}
    assert len(run.searched) == 6
    assert {
        ("team-a", "kubeflow.org", "experiments", "create"),
        ("team-a", "kubeflow.org", "experiments", "delete"),
        ("team-a", "batch", "jobs", "create"),
        ("team-a", "kubeflow.org", "trials", "list"),
    } <= set(asked)


def test_the_simulator_refuses_what_is_not_granted(cluster, run_on):
    from retune.errors import InputError

    hold(cluster.api, {"team-a": ENGINE - of("batch", "jobs", "create")})
    with pytest.raises(InputError, match="cannot create jobs"):
        run_on()


def test_no_wildcard_and_no_secret_but_pipelines_own(rendered):
    for documents in rendered.values():
        for role in (d for d in documents if d["kind"] in ("Role", "ClusterRole")):
            for rule in role["rules"]:
                assert "*" not in yaml.safe_dump(rule)
                assert "secrets" not in rule["resources"] or rule["resourceNames"] == [
                    "mlpipeline-minio-artifact"
                ]
