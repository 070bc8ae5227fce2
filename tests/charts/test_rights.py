"""RBAC: exactly the permissions listed here, and enough of them for the programs that use them."""

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
READER = {"kubeflow": of("", "configmaps", "get", name="katib-config")}
STUDY, TEST = ("team-a", "retune"), ("team-a", "retune-katib-config-reader")
REGISTERS = {("kubeflow", "retune-katib-config"): CONFIG, TEST: READER}
LISTED = {
    "defaults": {STUDY: {"team-a": ENGINE | PIPELINES}, **REGISTERS},
    "small": {STUDY: {"team-a": ENGINE | PIPELINES}, **REGISTERS},
    "production": {
        STUDY: {"team-a": ENGINE | PIPELINES},
        ("team-a", "retune-suggestion"): {"team-a": SUGGESTION},
        **REGISTERS,
    },
    "everything off": {},
    "MLflow elsewhere": {STUDY: {"team-a": ENGINE}, **REGISTERS},
    "own passwords": {
        STUDY: {"team-a": ENGINE | PIPELINES},
        ("katib", "retune-katib-config"): {"katib": CONFIG["kubeflow"], "*": CONFIG["*"]},
        TEST: {"katib": READER["kubeflow"]},
    },
    "other clusters": {  # finished Experiments are deleted at uninstall
        STUDY: {"team-a": ENGINE | PIPELINES},
        **REGISTERS,
        ("kubeflow", "retune-katib-config"): CONFIG
        | {"*": of("kubeflow.org", "experiments", "list", "get", "delete")},
    },
}


@pytest.mark.parametrize("name", SETS)
def test_no_account_may_do_more_than_is_listed(rendered, name):
    bindings = [d for d in rendered[name] if d["kind"].endswith("RoleBinding")]
    subjects = [subject for binding in bindings for subject in binding["subjects"]]
    assert {subject["kind"] for subject in subjects} <= {"ServiceAccount"}
    accounts = {(subject["namespace"], subject["name"]) for subject in subjects}
    assert {(n, account): grants(rendered[name], account, n) for n, account in accounts} == LISTED[name]


@pytest.mark.parametrize("name", SETS)
def test_who_may_start_jobs_beside_the_studies_cannot_use_an_account_that_changes_katib(rendered, name):
    """A pod runs under any account of its own namespace, so no account of the studies' namespace may write there."""
    made = {
        d["metadata"]["name"]
        for d in rendered[name]
        if d["kind"] == "ServiceAccount" and d["metadata"].get("namespace", "team-a") == "team-a"
    }
    for account in made:
        for place, granted in grants(rendered[name], account).items():
            verbs = {verb for _, _, _, verb in granted}
            assert place == "team-a" or verbs == {"get"}, (account, place, granted)


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
