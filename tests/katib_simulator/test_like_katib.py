"""The simulator gives the answers that real Katib gave to the same requests: `katib-0.19.json`, which tests/e2e/test_katib.py writes and checks."""

import json
from pathlib import Path

import pytest
from kubernetes import client, config

from retune.engines.katib import registration
from tests.katib_simulator.cluster import NAMESPACE
from tests.katib_simulator.conversation import (
    ALGORITHM,
    CASES,
    RECORDER,
    WISHES,
    Side,
    admissions,
    conversation,
)

pytest_plugins = ["tests.katib_simulator.runs"]
SAID = Path(__file__).with_name("katib-0.19.json")
IMAGE = "registry.example/retune-suggestion:1"


def connected(cluster):
    found = client.Configuration()
    config.load_kube_config(config_file=cluster.kubeconfig(), client_configuration=found)
    return Side(client.ApiClient(found), NAMESPACE)


def register(cluster):
    """Put the recorder into the simulator's katib-config."""
    import yaml

    found = cluster.objects.get("configmaps", "kubeflow", registration.CONFIG_MAP)
    content = yaml.safe_load(found["data"][registration.KEY])
    content["runtime"]["suggestions"].append(
        {"algorithmName": ALGORITHM, "image": IMAGE, "command": ["python3", "-c", RECORDER]}
    )
    found["data"][registration.KEY] = yaml.safe_dump(content)
    cluster.objects.replace("configmaps", found)


@pytest.fixture
def side(cluster):
    register(cluster)
    return connected(cluster)


@pytest.fixture(scope="module")
def said():
    return json.loads(SAID.read_text())


def test_it_refuses_and_fills_in_what_katib_does(side, said):
    answers = json.loads(json.dumps(admissions(side, IMAGE)).replace(IMAGE, "image"))
    assert answers.keys() == said["admissions"].keys() == WISHES.keys()
    for wish, answer in answers.items():
        assert answer == said["admissions"][wish], wish


def test_an_experiment_goes_as_under_katib(cluster, side, said):
    cluster.pods.env["PAUSE"] = "0"

    def printed(trial):
        return (cluster.pods.logs[trial] / "metrics.log").read_text()

    found = conversation(
        side,
        IMAGE,
        printed,
        cluster.pods.made.__getitem__,
        lambda: (cluster.folder / "recorder.log").read_text(),
        120,
    )
    found = json.loads(json.dumps(found).replace(IMAGE, "image"))
    assert found.keys() == said["conversation"].keys()
    for part, wanted in said["conversation"].items():
        if part in ("trials", "jobs", "pods"):
            assert found[part].keys() == wanted.keys() == CASES.keys()
            for case in wanted:
                assert found[part][case] == wanted[case], (part, case)
        else:
            assert found[part] == wanted, part
