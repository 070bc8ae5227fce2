"""What can be tested without a cluster of the tests that need one: Kubernetes accepts their objects, and retune their study."""

import pytest

from retune.engines.katib import manifest
from retune.study import load
from tests.charts.pod_security import violations
from tests.e2e.objects import INPUTS, STUDY, overrides, run_job, storage, values
from tests.kubernetes_schemas import VERSIONS, problems

pytest_plugins = ["tests.charts.helm"]
PLACE = "team-a", "localhost", "0.1.0"


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]], ids=lambda version: "{}.{}".format(*version))
def test_kubernetes_takes_its_objects(version):
    for document in (*run_job(*PLACE, "study"), *storage()):
        document["metadata"]["namespace"] = "team-a"
        assert problems(document, version) == []
        if document["kind"] in ("Job", "Deployment"):
            assert violations(document["spec"]["template"]["spec"]) == []


def test_the_chart_takes_its_values(helm):
    objects = {(d["kind"], d["metadata"]["name"]): d for d in helm.render(*values(*PLACE))}
    assert ("Secret", "retune-storage") in objects
    assert ("Service", "retune-mlflow") in objects
    (container,) = objects["Job", "retune-register"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "localhost/retune-train:0.1.0"


@pytest.mark.parametrize("algorithm", ["nomad", "tpe"])
def test_the_study_can_run_under_katib(algorithm):
    study = load(STUDY, overrides(*PLACE, "study", f"search.algorithm={algorithm}"))
    manifest.check(study)
    assert study.search.trials == 4
    assert study.cluster.secrets == ["retune-storage", "retune-mlflow-login"]
    uris = [study.model.base, *(source.uri for source in study.data.sources)]
    for uri in uris:
        folder, _, name = uri.removeprefix("s3://retune/").rpartition("/")
        there = INPUTS[folder] / name if folder in INPUTS else INPUTS[f"{folder}/{name}"]
        assert there.exists(), uri
