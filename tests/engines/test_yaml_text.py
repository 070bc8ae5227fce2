"""Go reads retune's YAML as Python does: text stays text."""

import json
import random
import subprocess

import pytest
import yaml

from retune.engines.yaml_text import as_yaml
from retune.launch.package import package
from tests.conftest import ROOT

pytest_plugins = ["tests.k8s.kubectl"]
WORDS = [
    "y", "n", "Y", "N", "yes", "On", "1e-05", "1e5", ".5e3", "0o17", "-0o17", "0B1", "0X1F", "08", "1_0", "1e_5", "12:30", "1.", "+.5",
    "~", "null", "=", "<<", "-", "+", ".", "-.inf", ".NaN", "nan", "", " ", "2001-01-01", "8Gi", "a: b", "- a", "# a", "two\nlines", "1\n", "é",
]  # fmt: skip


def read_by_kubectl(kubectl, text):
    """Return YAML as Kubernetes' Go parser reads it: kubectl adds a label locally, without a cluster."""
    words = [kubectl, "label", "--local", "--filename", "-", "--output", "json", "seen=yes"]
    done = subprocess.run(words, input=text, capture_output=True, text=True, env={"KUBECONFIG": "/dev/null"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_text_stays_text_for_kubectl(kubectl):
    chance = random.Random(0)
    made = ["".join(chance.choices("0123456789.+-_eExXoObByYnNaft~:%", k=chance.randint(1, 5))) for _ in range(3000)]  # fmt: skip
    data = {f"k{number}": word for number, word in enumerate([*WORDS, *made])}
    written = as_yaml([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data}])
    assert yaml.safe_load(written)["data"] == data
    assert read_by_kubectl(kubectl, written)["data"] == data


def test_a_package_for_kubeflow_pipelines_holds_text_as_text(small):
    words = [f"cluster.volumes=[{{claim: models, mount: {ROOT}}}]", "artifacts.uri=s3://b/a", "tracking.uri=http://mlflow:5000", 'cluster.env={A: "y", B: "1e5"}',
             'cluster.node_selector={gpu: "0o17"}', "cluster.images={train: r/a:1, eval: r/b:1}"]  # fmt: skip
    written = package("search", small(*words))
    for line in ('value: "y"', 'value: "1e5"', '"0o17"'):
        assert line in written
    first, second = yaml.safe_load_all(written)
    assert "deploymentSpec" in first
    assert "platforms" in second


@pytest.mark.parametrize("value", [True, 1, 1.5, None, ["a", 2], {"a": {}}])
def test_what_is_no_text_stays_what_it_is(value):
    assert yaml.safe_load(as_yaml([{"a": value}])) == {"a": value}
