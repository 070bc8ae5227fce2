"""Real Katib gives the answers of the simulator's transcript to the same requests.

`RETUNE_E2E_WRITE=1` writes the transcript, tests/katib_simulator/katib-0.19.json, anew; `test_like_katib.py` beside it holds
the simulator against it.
"""

import json
import os

import pytest
import yaml
from kubernetes import client, config

from retune.engines.katib import registration
from tests.katib_simulator.conversation import ALGORITHM, RECORDER, Side, admissions, conversation
from tests.katib_simulator.test_like_katib import SAID

pytestmark = [pytest.mark.cluster, pytest.mark.own]


@pytest.fixture(scope="module")
def image(images):
    registry, tag = images
    return f"{registry}/retune-suggestion:{tag}".lstrip("/")


@pytest.fixture(scope="module")
def place(namespace, image):
    """A namespace, with the recorder in Katib's configuration."""
    made = namespace("katib")
    words = ["configmap", registration.CONFIG_MAP, "--namespace", "kubeflow"]
    before = json.loads(made.kubectl("get", *words, "--output", "json", namespaced=False))
    content = yaml.safe_load(before["data"][registration.KEY])
    content["runtime"]["suggestions"].append(
        {
            "algorithmName": ALGORITHM, "image": image, "imagePullPolicy": "IfNotPresent", "command": ["python3", "-c", RECORDER],
            "resources": {"limits": {"memory": "512Mi"}},
        }
    )  # fmt: skip

    def write(text):
        change = json.dumps({"data": {registration.KEY: text}})
        made.kubectl("patch", *words, "--type", "merge", "--patch", change, namespaced=False)

    write(yaml.safe_dump(content))
    yield made
    write(before["data"][registration.KEY])


@pytest.fixture(scope="module")
def side(place):
    found = client.Configuration()
    config.load_kube_config(config_file=os.environ["KUBECONFIG"], client_configuration=found)
    return Side(client.ApiClient(found), place.namespace)


def test_real_katib_says_what_the_transcript_holds(place, side, image):
    def pod_of(trial):
        return place.get("pods", selector=f"job-name={trial}")[0]

    def log(trial):
        return place.kubectl(
            "logs", pod_of(trial)["metadata"]["name"], "--container", "metrics-logger-and-collector"
        )

    def pod(trial):
        found = pod_of(trial)
        main = next(c for c in found["spec"]["containers"] if c["name"] == "main")
        of_the_job = ("controller-uid", "job-name")
        labels = {k: v for k, v in found["metadata"]["labels"].items() if not k.endswith(of_the_job)}
        return {"labels": labels, "command": main.get("command", []) + main.get("args", [])}

    def requests():
        (pod,) = place.pods("katib.kubeflow.org/deployment")
        return place.kubectl("logs", pod)

    answers = {"admissions": admissions(side, image)}
    answers["conversation"] = conversation(side, image, log, pod, requests)
    found = json.loads(json.dumps(answers).replace(image, "image").replace(place.namespace, "namespace"))
    if os.environ.get("RETUNE_E2E_WRITE"):
        SAID.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    said = json.loads(SAID.read_text())
    for wish, answer in said["admissions"].items():
        assert found["admissions"][wish] == answer, wish
    for part, wanted in said["conversation"].items():
        assert found["conversation"][part] == wanted, part
