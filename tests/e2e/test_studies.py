"""Studies under Katib on a real cluster lose pods, servers and nodes, and still end with a champion."""

import json
import time

import pytest
import yaml

from retune.engines.katib import registration
from tests.e2e.cluster import until
from tests.e2e.objects import SUGGESTIONS, TRIALS, start

pytestmark = pytest.mark.cluster


def champion(cluster, model):
    with cluster.mlflow() as client:
        return client.get_model_version_by_alias(model, "champion")


class Thief:
    """Deletes, once for each of some labels, the first running pod that has it."""

    def __init__(self, cluster, *labels):
        self.cluster, self.taken = cluster, dict.fromkeys(labels, "")

    def __call__(self):
        for label, gone in self.taken.items():
            found = [] if gone else self.cluster.pods(label)
            if found:
                self.cluster.evict(found[0])
                self.taken[label] = found[0]


def test_a_study_that_pods_are_taken_from_ends_with_a_champion(team, images):
    job = start(team, images, "nomad", "report.answers=2", "search.trials=3")
    thief = Thief(team, TRIALS, SUGGESTIONS)
    outcome = team.outcome(job, meanwhile=thief)
    assert all(thief.taken.values()), (
        f"a trial and the suggestion service were to lose a pod each, but only {thief.taken}"
    )
    assert outcome["gate"]["decision"] == "promote"
    assert outcome["trials"] == 3
    assert champion(team, "nomad").version == "1"


@pytest.fixture
def roomy_tpe(team):
    """Katib's entry of its own `tpe` with memory enough: without `resources` its pod gets 100Mi, and hyperopt needs more here."""
    words = ["configmap", registration.CONFIG_MAP, "--namespace", "kubeflow"]
    before = json.loads(team.kubectl("get", *words, "--output", "json", namespaced=False))["data"][
        registration.KEY
    ]
    content = yaml.safe_load(before)
    (entry,) = [e for e in content["runtime"]["suggestions"] if e["algorithmName"] == "tpe"]
    entry["resources"] = {"limits": {"memory": "1Gi"}}
    change = json.dumps({"data": {registration.KEY: yaml.safe_dump(content)}})
    team.kubectl("patch", *words, "--type", "merge", "--patch", change, namespaced=False)


@pytest.mark.own
def test_a_study_whose_run_dies_is_carried_on_under_katibs_own_tpe(team, images, roomy_tpe):
    """The engine's pod is killed while trials run; another `retune run` finds the Experiment and completes it."""
    words = ["search.algorithm=tpe", "search.trials=3"]
    job = start(team, images, "tpe", *words)
    until(lambda: team.pods(TRIALS), 300, "a trial")
    (pod,) = team.pods(f"job-name={job}")
    team.kubectl("delete", "pod", pod, "--grace-period", "0", "--force")
    until(lambda: team.ended(job) == "Failed", 60, "the end of the first run")
    outcome = team.outcome(start(team, images, "tpe", *words, job="run-tpe-again"))
    assert outcome["gate"]["decision"] == "promote"
    assert len(team.get("experiments", selector="retune.dev/study=tpe")) == 1
    assert champion(team, "tpe").version == "1"


def test_several_objectives_and_a_constraint_with_mlflow_and_the_storage_away_for_a_minute(team, images):
    job = start(
        team, images, "front", "search.algorithm=nomad", "search.trials=4",
        "search.objective=[{metric: validation_loss}, {metric: adapter_mib}]",
        "search.constraints=[{metric: adapter_mib, max: 1.0}]",
    )  # fmt: skip
    until(lambda: team.pods(TRIALS), 300, "a trial")
    with team.away("retune-mlflow"):
        time.sleep(60)
    with team.away("seaweedfs"):
        time.sleep(60)
    assert team.ended(job) == "", f"the study had ended before both were back\n{team.logs(job)}"
    outcome = team.outcome(job)
    assert outcome["trials"] == 4
    assert len(outcome["pareto"]) >= 1


@pytest.mark.own
def test_a_drained_node_ends_nothing(team, images):
    """All at once: `retune run`, trials, the suggestion service, MLflow with its database, and the storage."""
    job = start(team, images, "drain", "search.algorithm=lhs")
    until(lambda: team.pods(TRIALS), 300, "a trial")
    node = team.get("pods", selector=TRIALS)[0]["spec"]["nodeName"]
    # All but names and Katib: of a cluster with several nodes those would be elsewhere by then, and Katib's webhook sees every pod.
    words = ["--pod-selector", "k8s-app!=kube-dns,!katib.kubeflow.org/component"]
    words += ["--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout", "5m"]
    try:
        team.kubectl("drain", node, *words, namespaced=False)
    finally:
        team.kubectl("uncordon", node, namespaced=False)
    assert team.outcome(job, 1500)["trials"] == 4


def test_a_trial_that_runs_out_of_memory_fails_alone(team, images):
    """A rank so high that a trial needs more than its pod may have."""
    rank = "{name: rank, kind: discrete, values: [4, 200000], default: 4}"
    outcome = team.outcome(
        start(
            team, images, "oom", "search.algorithm=lhs", "cluster.memory=1500Mi",
            f"search.parameters={{preset: tribes2024, replace: [{rank}]}}",
        )
    )  # fmt: skip
    assert 0 < outcome["failed"] < 4
    assert outcome["gate"]["decision"] == "promote"
