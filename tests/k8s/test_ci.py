"""The CronJob and the Argo Events sensor that start a retuning: the same Job, with valid arguments of the program."""

import pytest
import yaml

from retune.cli import cli
from retune.study import load
from tests.charts.helm import find
from tests.charts.pod_security import violations
from tests.conftest import ROOT
from tests.test_docs import unknown

pytest_plugins = ["tests.k8s.kubectl"]
CI = ROOT / "k8s/ci"


@pytest.fixture(scope="module")
def built(kustomize):
    return kustomize(CI / "argo-events")


def test_cron_and_sensor_start_the_same_job(built):
    cron = find(built, "CronJob", "retune-ci")["spec"]["jobTemplate"]["spec"]
    (trigger,) = find(built, "Sensor", "retune-data")["spec"]["triggers"]
    job = trigger["template"]["k8s"]["source"]["resource"]
    assert job["spec"] == cron
    pod = cron["template"]["spec"]
    assert violations(pod) == []
    (container,) = pod["containers"]
    assert container["image"] == "registry.example/ml/retune-train:0.1.0"
    assert unknown(container["command"]) == []
    assert set(cli.get_command(None, "ci").commands) == {"run", "promote"}


def test_names_lead_to_objects_that_are_there(built):
    sensor, source = find(built, "Sensor", "retune-data"), find(built, "EventSource", "retune-data")
    (dependency,) = sensor["spec"]["dependencies"]
    assert dependency["eventSourceName"] == source["metadata"]["name"]
    assert dependency["eventName"] in source["spec"]["minio"]
    pod = find(built, "CronJob", "retune-ci")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    mounted = [volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume]
    (study,) = [d for d in built if d["kind"] == "ConfigMap"]
    assert mounted == [study["metadata"]["name"]]
    account = sensor["spec"]["template"]["serviceAccountName"]
    assert find(built, "RoleBinding", "retune-sensor")["subjects"][0]["name"] == account
    assert find(built, "Role", "retune-sensor")["rules"] == [
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create"]}
    ]


def test_the_study_is_one_and_waits_for_a_person_unless_the_gain_is_clear(built, tmp_path):
    (found,) = [d for d in built if d["kind"] == "ConfigMap"]
    (tmp_path / "study.yaml").write_text(found["data"]["study.yaml"])
    loaded = load(tmp_path / "study.yaml")
    assert loaded.promote.automatic == "beyond-noise"
    assert loaded.search.repeats >= 2  # else nothing is known about the noise
    assert loaded.cluster.namespace == find(built, "CronJob", "retune-ci")["metadata"]["namespace"]
    assert yaml.safe_load(found["data"]["study.yaml"])["engine"] == {"kind": "katib"}
