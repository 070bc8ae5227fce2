"""Network policies, asked with the pods that the pipeline, the engine and the chart really make."""

import re

import pytest
import yaml

from retune.engines.katib.manifest import Place, experiment
from retune.launch.package import package
from retune.study import load
from tests.charts.helm import SETS, find, pods
from tests.charts.network import Pod, connects, outside
from tests.conftest import ROOT

pytest_plugins = ["tests.charts.helm"]
INTERNET, METADATA, NODE_DNS = outside("93.184.216.34"), outside("169.254.169.254"), outside("169.254.20.10")
S3, API = outside("10.0.32.7"), outside("10.0.0.1")
SEAWEEDFS, DNS, KFP = (
    Pod({}, "seaweedfs"),
    Pod({"k8s-app": "kube-dns"}, "kube-system"),
    Pod({"app": "ml-pipeline"}, "kubeflow"),
)
KATIB, NOTEBOOK, STRANGER = (
    Pod({"katib.kubeflow.org/component": "controller"}, "kubeflow"),
    Pod({"notebook-name": "a"}),
    Pod({}, "team-b"),
)


@pytest.fixture(scope="module")
def known(rendered):
    """Pods by name: steps of both pipelines, a trial of each kind, a suggestion, and those of the chart."""
    found = {}
    study = load(
        ROOT / "tests/engines/katib/study.yaml",
        ["tracking.uri=http://mlflow:5000", "cluster.volumes.0.read_only=trials"],
    )
    for pipeline in ("search", "tune"):
        _, platform = yaml.safe_load_all(package(pipeline, study))
        for label, pod in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].items():
            found[label.removeprefix("exec-")] = Pod(pod["podMetadata"]["labels"])
    made = experiment(study, Place("s3://a/search-1", "s3://a/data"), 2)
    names = {"katib.kubeflow.org/experiment": "e"}
    trial = made["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["metadata"]["labels"]
    found["trial"] = Pod({**trial, **names, "katib.kubeflow.org/trial": "e-1"})
    for document, metadata, _ in pods(rendered["production"]):
        if document["kind"] == "TrainingRuntime":
            found["TrainJob trial"] = Pod({**metadata["labels"], **names, "katib.kubeflow.org/trial": "e-1"})
    found["suggestion"] = Pod({**made["metadata"]["labels"], **names, "katib.kubeflow.org/suggestion": "e"})
    for kind, name in [("Deployment", "retune-mlflow"), ("StatefulSet", "retune-postgresql")]:
        labels = find(rendered["small"], kind, name)["spec"]["template"]["metadata"]["labels"]
        found[name.removeprefix("retune-")] = Pod(labels)
    for document, metadata, _ in pods(rendered["small"]):
        if document["kind"] in ("Job", "Pod"):
            found[document["metadata"]["name"]] = Pod(metadata["labels"])
    return found


def policies(documents):
    return [document for document in documents if document["kind"] == "NetworkPolicy"]


@pytest.mark.parametrize("step", ["benchmark", "score", "retune-test-storage"])
def test_a_benchmark_reaches_storage_mlflow_and_what_pipelines_need_alone(rendered, known, step):
    """`helm test` asks for the storage as a benchmark does."""
    small = policies(rendered["small"])
    reached = [
        (SEAWEEDFS, 8333, "TCP"),
        (known["mlflow"], 5000, "TCP"),
        (DNS, 53, "UDP"),
        (NODE_DNS, 53, "UDP"),
        (KFP, 8887, "TCP"),
    ]
    refused = [
        (INTERNET, 443, "TCP"), (INTERNET, 80, "TCP"), (INTERNET, 53, "UDP"), (METADATA, 80, "TCP"), (SEAWEEDFS, 22, "TCP"), (STRANGER, 9000, "TCP"),
        (known["postgresql"], 5432, "TCP"), (known["trial"], 22, "TCP"), (known["suggestion"], 6789, "TCP"), (NOTEBOOK, 8888, "TCP"), (API, 443, "TCP"),
    ]  # fmt: skip
    assert [to for to in reached if not connects(small, known[step], *to)] == []
    assert [to for to in refused if connects(small, known[step], *to)] == []
    production = policies(rendered["production"])
    assert connects(production, known[step], S3, 443)
    assert connects(production, known[step], API, 6443)
    assert not any(
        connects(production, known[step], *to)
        for to in [(INTERNET, 443), (S3, 22), (SEAWEEDFS, 8333), (API, 22)]
    )


def test_a_benchmark_outside_pipelines_does_not_even_reach_those(rendered, known):
    without = policies(rendered["MLflow elsewhere"])
    assert not connects(without, known["benchmark"], KFP, 8887)
    assert not connects(without, known["benchmark"], API, 443)
    # Without a named storage the port is open to the whole cluster
    assert connects(without, known["benchmark"], STRANGER, 9000)
    assert not connects(without, known["benchmark"], INTERNET, 9000)


def test_nobody_calls_benchmarks_and_trials_and_trials_reach_a_hub(rendered, known):
    small = policies(rendered["small"])
    for target in ("benchmark", "trial", "TrainJob trial"):
        assert not any(
            connects(small, source, known[target], 22)
            for source in (NOTEBOOK, STRANGER, known["trial"], KATIB)
        )
    for source in ("trial", "TrainJob trial", "search", "mix", "retune-register"):
        assert connects(small, known[source], INTERNET, 443), source


def test_katib_asks_for_suggestions_and_nothing_goes_out(rendered, known):
    production = policies(rendered["production"])
    suggestion = known["suggestion"]
    assert connects(production, KATIB, suggestion, 6789)
    assert connects(production, known["trial"], suggestion, 6788)
    assert connects(production, suggestion, Pod({}, "kubeflow"), 6789)
    assert not any(
        connects(production, source, suggestion, 6789) for source in (STRANGER, NOTEBOOK, known["trial"])
    )
    assert not any(
        connects(production, suggestion, *to) for to in [(INTERNET, 443), (S3, 443), (known["mlflow"], 5000)]
    )


def test_mlflow_is_for_the_namespace_and_its_database_for_mlflow(rendered, known):
    small, production = policies(rendered["small"]), policies(rendered["production"])
    mlflow, ingress = known["mlflow"], Pod({}, "ingress-nginx")
    assert all(
        connects(small, source, mlflow, 5000) for source in (NOTEBOOK, known["trial"], known["benchmark"])
    )
    assert not connects(small, STRANGER, mlflow, 5000)
    assert not connects(small, ingress, mlflow, 5000)
    assert connects(production, ingress, mlflow, 5000)
    assert connects(small, mlflow, known["postgresql"], 5432)
    assert not any(
        connects(small, source, known["postgresql"], 5432) for source in (NOTEBOOK, STRANGER, known["trial"])
    )
    assert not connects(small, known["postgresql"], INTERNET, 443)


def test_the_dns_of_openshift_and_of_other_node_caches(rendered, known):
    dns = Pod({"dns.operator.openshift.io/daemonset-dns": "default"}, "openshift-dns")
    cache = outside("169.254.25.10")
    for step in ("benchmark", "suggestion"):
        assert connects(policies(rendered["small"]), known[step], dns, 5353, "UDP")
        assert not connects(policies(rendered["small"]), known[step], cache, 53, "UDP")
        assert connects(policies(rendered["other clusters"]), known[step], cache, 53, "UDP")
        assert not connects(policies(rendered["other clusters"]), known[step], NODE_DNS, 53, "UDP")


def test_an_ambient_mesh_carries_what_is_allowed_and_nothing_else(rendered, known):
    ambient, probes = policies(rendered["other clusters"]), outside("169.254.7.127")
    for source, target in [("benchmark", "mlflow"), ("mlflow", "postgresql"), ("trial", "suggestion")]:
        assert connects(ambient, known[source], known[target], 15008), (source, target)
        assert not connects(policies(rendered["small"]), known[source], known[target], 15008)
    assert connects(ambient, probes, known["mlflow"], 5000)
    assert connects(ambient, probes, known["suggestion"], 6789)
    assert not connects(policies(rendered["small"]), probes, known["mlflow"], 5000)
    assert not connects(ambient, STRANGER, known["mlflow"], 15008)
    assert not connects(ambient, known["benchmark"], INTERNET, 15008)


def test_prometheus_reaches_the_metrics_of_suggestions(rendered, known):
    prometheus = Pod({}, "monitoring")
    assert connects(policies(rendered["other clusters"]), prometheus, known["suggestion"], 9100)
    assert not connects(policies(rendered["other clusters"]), prometheus, known["suggestion"], 6789)
    assert not connects(policies(rendered["small"]), prometheus, known["suggestion"], 9100)
    monitor = find(rendered["other clusters"], "PodMonitor", "retune-suggestion")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (relabeling,) = endpoint["relabelings"]
    assert relabeling["sourceLabels"] == ["__address__"] == [relabeling["targetLabel"]]
    for found, wanted in {"10.0.0.7:6789": "10.0.0.7:9100", "[fd00::7]:6789": "[fd00::7]:9100"}.items():
        replacement = relabeling["replacement"].replace("$", "\\")
        assert re.fullmatch(relabeling["regex"], found).expand(replacement) == wanted
    register = find(rendered["other clusters"], "Job", "retune-register")
    (container,) = register["spec"]["template"]["spec"]["containers"]
    assert container["command"][-5:] == ["--except", "gp", "--any-user", "--metrics-port", "9100"]


def test_further_rules_are_added(helm, known):
    words = ["--set", "networkPolicy.benchmarkEgress[0].to[0].ipBlock.cidr=93.184.216.0/24"]
    assert connects(policies(helm.render(*words)), known["benchmark"], INTERNET, 443)
    assert not connects(policies(helm.render(*words)), known["benchmark"], METADATA, 443)


def test_none_where_they_are_switched_off(rendered):
    assert {name for name in SETS if not policies(rendered[name])} == {"everything off"}
