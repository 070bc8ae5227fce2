"""The compiled pipeline as a cluster gets it: the golden YAML, with the study's images, resources and pod settings.

Nothing is compiled again: components, arguments and caching are those of the YAML in the repository. What the pods need
(image, GPUs, volumes, secrets, tolerations) does not affect results, so it is added to the package instead of being an
argument of the steps.
"""
# No `from __future__ import annotations`: KFP reads a component's annotations as objects.

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from retune import cores
from retune.engines.katib.pods import CA_FOLDER, LABELS, cpu_cores, environment, plain
from retune.engines.yaml_text import as_yaml
from retune.errors import InputError
from retune.images import EVAL_IMAGE, TRAIN_IMAGE
from retune.launch.compiled import compiled
from retune.study import Cluster, Study
from retune.study.kubernetes import number
from retune.study.placement import PodAffinity, PodTerm
from retune.study.reach import unreachable

CREDENTIALS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE",
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_S3_ENDPOINT_URL", "HF_TOKEN", "HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy",
    "no_proxy", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE",
)  # fmt: skip
"""Keys of the study's Secrets for storage, MLflow, the hub and proxies: KFP requires each key to be named."""
HEAVY = ("search", "benchmark", "train", "validate-adapter", "score")
"""Steps that train or evaluate, and so get the GPUs; under Katib `search` does not, since it only follows the Experiment."""
STEP_LABEL = "retune.dev/step"
"""Label with a step's name, by which the network policies know the pods that run benchmarks."""


def check(study: Study) -> None:
    """Refuse what cannot run as a pipeline on the cluster.

    Raises:
        InputError: with every problem.

    """
    problems = unreachable(study)
    images = study.cluster.images
    wanted = {"train": True, "eval": bool(study.benchmark.tasks)}
    problems += [
        f"`cluster.images.{name}` is required on a cluster: the image as its nodes pull it (`make images` builds it)"
        for name, needed in wanted.items()
        if needed and getattr(images, name) is None
    ]
    problems += _beyond_steps(study)
    if problems:
        raise InputError(problems, f"study {study.name!r} on a cluster")


def _beyond_steps(study: Study) -> list[str]:
    """Return a problem for each setting of `cluster` that KFP has no field for in a step's pod."""
    cluster = study.cluster
    problems = [
        f"Kubeflow Pipelines cannot mount a claim read-only in a step: say `read_only: trials` for {volume.claim!r}, and "
        "it is read-only in Katib's trials and writable in steps"
        for volume in cluster.volumes
        if volume.read_only is True
    ]
    problems += [
        f"Kubeflow Pipelines names a step's volume as its claim, so a claim's name must have no dots and at most 63 "
        f"characters, but got {volume.claim!r}"
        for volume in cluster.volumes
        if "." in volume.claim or len(volume.claim) > 63
    ]
    twice = sorted(
        {v.claim for v in cluster.volumes if [w.claim for w in cluster.volumes].count(v.claim) > 1}
    )
    if twice:
        problems.append(
            f"Kubeflow Pipelines mounts a claim once in a step, but these are mounted twice: {twice}"
        )
    if study.engine.kind != "katib" and (lost := trials_only(study)):
        problems.append(
            f"Kubeflow Pipelines has no field for {lost} in a step's pod, and trials have pods of their own only under "
            "`engine.kind: katib`: use that engine, or remove the keys"
        )
    return problems


def trials_only(study: Study) -> list[str]:
    """Return the keys of `cluster` in the study that only apply to Katib's trials, since KFP has no field for them."""
    keys = ("priority_class", "runtime_class", "topology_spread")
    return [f"cluster.{key}" for key in keys if getattr(study.cluster, key)]


def package(name: str, study: Study) -> str:
    """Return the pipeline `name` for the cluster of a study, as YAML of two documents: pipeline and platform.

    Raises:
        InputError: with every problem that `check` finds.

    """
    check(study)
    spec = yaml.safe_load(compiled(name).read_text())
    images = {TRAIN_IMAGE: study.cluster.images.train, EVAL_IMAGE: study.cluster.images.eval}
    heavy = set(HEAVY) - ({"search"} if study.engine.kind == "katib" else set())
    shapes = {True: _pod(study.cluster, heavy=True), False: _pod(study.cluster, heavy=False)}
    platform: dict[str, Any] = {}
    for label, executor in spec["deploymentSpec"]["executors"].items():
        step = label.removeprefix("exec-")
        resources, pod = shapes[step in heavy]
        container = executor["container"]
        container["image"] = images[container["image"]] or study.cluster.images.train
        container["resources"] = resources
        env = environment(study.cluster)
        if step in heavy:
            env = {cores.VARIABLE: str(cpu_cores(study.cluster)), **env}
        if env:
            container["env"] = [{"name": key, "value": value} for key, value in env.items()]
        labels = pod.get("podMetadata", {}).get("labels", {})
        platform[label] = pod | {"podMetadata": {"labels": {**labels, **LABELS, STEP_LABEL: step}}}
    documents = [spec, {"platforms": {"kubernetes": {"deploymentSpec": {"executors": platform}}}}]
    return as_yaml(documents, sort_keys=True)


def _pod(cluster: Cluster, heavy: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a step's resources and its Kubernetes settings, as KFP writes them.

    A pipeline of one empty step is compiled by KFP and kfp-kubernetes, and both are taken from its YAML: the format
    stays theirs.
    """
    from kfp import compiler, dsl

    @dsl.component(base_image="none", install_kfp_package=False)
    def step() -> None:
        pass

    @dsl.pipeline(name="shape")
    def shape() -> None:
        _place(step(), cluster, heavy)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shape.yaml"
        compiler.Compiler().compile(shape, str(path))
        spec, platform = yaml.safe_load_all(path.read_text())
    (executor,) = spec["deploymentSpec"]["executors"].values()
    (pod,) = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    return executor["container"]["resources"], pod


def _place(task: Any, cluster: Cluster, heavy: bool) -> None:
    """Apply the section `cluster` to a task; GPUs and node selection only if it is `heavy`."""
    from kfp import kubernetes

    if heavy:
        memory = str(math.ceil(number(cluster.memory)))  # KFP takes fewer forms of a quantity than Kubernetes
        task.set_cpu_request(_milli(cluster.cpu))
        task.set_memory_request(memory).set_memory_limit(memory)
        if cluster.gpus:
            task.set_accelerator_type(cluster.gpu_resource).set_accelerator_limit(cluster.gpus)
        for key, value in cluster.node_selector.items():
            kubernetes.add_node_selector(task, key, value)
        for taint in cluster.tolerations:
            kubernetes.add_toleration(task, **taint.model_dump())
        _add_affinity(task, cluster)
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=cluster.shared_memory)
    else:
        task.set_cpu_request("500m").set_memory_request("2Gi").set_memory_limit("8Gi")
    if cluster.cpu_limit:
        task.set_cpu_limit(_milli(cluster.cpu_limit if heavy else max(cluster.cpu_limit, "500m", key=number)))
    for volume in cluster.volumes:
        kubernetes.mount_pvc(task, pvc_name=volume.claim, mount_path=volume.mount)
    for secret in cluster.secrets:
        keys = dict.fromkeys((*CREDENTIALS, *cluster.secret_keys))
        kubernetes.use_secret_as_env(task, secret, {key: key for key in keys}, optional=True)
    if cluster.ca_bundle:
        kubernetes.use_config_map_as_volume(task, cluster.ca_bundle.config_map, CA_FOLDER)
    if cluster.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(cluster.pull_secrets))
    if cluster.queue:
        kubernetes.add_pod_label(task, "kueue.x-k8s.io/queue-name", cluster.queue)
    user = cluster.run_as_user
    kubernetes.set_security_context(task, run_as_user=user, run_as_group=user, run_as_non_root=True)


def _milli(cpu: str) -> str:
    """Return a quantity of CPU in millicores, the only form of Kubernetes' that KFP accepts for every value."""
    return f"{math.ceil(number(cpu) * 1000)}m"


def _add_affinity(task: Any, cluster: Cluster) -> None:
    """Apply `cluster.affinity` to a task. kfp-kubernetes has a function for nodes; for pods KFP's message is edited."""
    from google.protobuf import json_format
    from kfp import kubernetes
    from kfp.kubernetes import common

    affinity = cluster.affinity
    if affinity is None:
        return
    if affinity.nodeAffinity:
        kubernetes.add_node_affinity_json(task, plain(affinity.nodeAffinity))
    message = common.get_existing_kubernetes_config_as_message(task)
    for anti, pods in ((False, affinity.podAffinity), (True, affinity.podAntiAffinity)):
        for term, weight in _terms(pods):
            selector = term.labelSelector
            message.pod_affinity.add(
                topology_key=term.topologyKey,
                namespaces=term.namespaces,
                match_pod_labels=selector.matchLabels,
                match_pod_expressions=[rule.model_dump() for rule in selector.matchExpressions],
                weight=weight,
                anti=anti or None,
            )
    task.platform_config["kubernetes"] = json_format.MessageToDict(message)


def _terms(pods: PodAffinity | None) -> Iterator[tuple[PodTerm, int | None]]:
    """Yield each term, with its weight if it is only preferred."""
    if pods is not None:
        for term in pods.requiredDuringSchedulingIgnoredDuringExecution:
            yield term, None
        for preferred in pods.preferredDuringSchedulingIgnoredDuringExecution:
            yield preferred.podAffinityTerm, preferred.weight
