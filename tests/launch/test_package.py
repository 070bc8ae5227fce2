"""The package for a cluster: the golden pipeline with the study's pod settings, and nothing changed that affects results."""

import pytest
import yaml

from retune.errors import InputError
from retune.launch.compiled import PIPELINES
from retune.launch.package import package
from tests.conftest import ROOT

FOLDER = ROOT / "pipelines"
CLUSTER = [
    "artifacts.uri=s3://b/artifacts", "tracking.uri=http://mlflow:5000",
    "cluster.images={train: registry.example/retune-train:1, eval: registry.example/retune-eval:1}",
    f"cluster.volumes=[{{claim: models, mount: {ROOT}}}]", "cluster.secrets=[storage]", "cluster.pull_secrets=[registry]",
    "cluster.gpus=2", "cluster.node_selector={gpu: h200}", "cluster.queue=team-a",
    "cluster.tolerations=[{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]",
    "benchmark.tasks=[mmlu]", f"benchmark.data={{mmlu: {ROOT}/data/mmlu}}",
]  # fmt: skip


def documents(name, study):
    return list(yaml.safe_load_all(package(name, study)))


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_nothing_but_image_and_resources_differs_from_the_golden_file(small, name):
    spec, _ = documents(name, small(*CLUSTER))
    golden = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    for executor in spec["deploymentSpec"]["executors"].values():
        assert executor["container"].pop("image").startswith("registry.example/retune-")
        executor["container"].pop("resources")
        executor["container"].pop("env", None)
    for executor in golden["deploymentSpec"]["executors"].values():
        executor["container"].pop("image")
    assert spec == golden


@pytest.mark.parametrize("name", PIPELINES)
def test_kfp_reads_the_package_and_its_platform(small, name, tmp_path):
    from google.protobuf import json_format
    from kfp import components
    from kfp.pipeline_spec import pipeline_spec_pb2

    (tmp_path / "package.yaml").write_text(package(name, small(*CLUSTER)))
    loaded = components.load_component_from_file(str(tmp_path / "package.yaml"))
    platform = documents(name, small(*CLUSTER))[1]
    message = json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())  # unknown fields are refused
    assert set(message.platforms["kubernetes"].deployment_spec.executors) == set(
        loaded.pipeline_spec.deployment_spec["executors"]
    )


def test_gpus_go_to_the_steps_that_train_or_evaluate(small):
    spec, platform = documents("search", small(*CLUSTER))
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    with_gpu = {
        label
        for label, executor in spec["deploymentSpec"]["executors"].items()
        if executor["container"]["resources"].get("accelerator", {}).get("resourceCount") == "2"
    }
    assert with_gpu == {"exec-search", "exec-benchmark"}
    told_cores = {
        label
        for label, executor in spec["deploymentSpec"]["executors"].items()
        if {"name": "RETUNE_CORES", "value": "4"} in executor["container"].get("env", [])
    }
    assert told_cores == with_gpu
    assert {label for label, pod in pods.items() if pod.get("nodeSelector")} == with_gpu
    assert {label for label, pod in pods.items() if pod.get("tolerations")} == with_gpu
    for label, pod in pods.items():
        assert [mount["constant"] for mount in pod["pvcMount"]] == ["models"]
        assert pod["secretAsEnv"][0]["secretName"] == "storage"
        assert pod["podMetadata"]["labels"] == {
            "kueue.x-k8s.io/queue-name": "team-a",
            "app.kubernetes.io/name": "retune",
            "app.kubernetes.io/managed-by": "retune",
            "retune.dev/step": label.removeprefix("exec-"),
        }
        assert pod["securityContext"] == {"runAsGroup": "10001", "runAsNonRoot": True, "runAsUser": "10001"}


@pytest.mark.parametrize(("limit", "light"), [("6", 6.0), ("4", 4.0), ("250m", 0.5)])
def test_a_cpu_limit_is_that_of_every_step(small, limit, light):
    """As a quota on `limits.cpu` asks for: a pod without one is refused there. None is below its request."""
    cpu = "cluster.cpu=100m" if limit == "250m" else "cluster.cpu=4"
    spec, _ = documents("search", small(*CLUSTER, cpu, f"cluster.cpu_limit={limit}"))
    for label, executor in spec["deploymentSpec"]["executors"].items():
        resources = executor["container"]["resources"]
        heavy = label in ("exec-search", "exec-benchmark")
        assert resources["cpuLimit"] == (0.25 if heavy and limit == "250m" else light)
        assert resources["cpuRequest"] <= resources["cpuLimit"]


def test_under_katib_the_search_step_only_watches(small):
    spec, _ = documents("search", small(*CLUSTER, "engine={kind: katib}"))
    resources = spec["deploymentSpec"]["executors"]["exec-search"]["container"]["resources"]
    assert "accelerator" not in resources


def test_what_pods_cannot_reach_is_refused_all_at_once(small):
    with pytest.raises(InputError) as caught:
        package("search", small())
    text = "\n".join(caught.value.problems)
    for key in ("model.base", "artifacts.uri", "data.sources.0.uri", "data.sources.1.uri", "tracking.uri", "cluster.images.train"):  # fmt: skip
        assert f"`{key}`" in text, key
    assert len(caught.value.problems) == 6
