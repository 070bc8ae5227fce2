"""The compiled pipeline as a cluster gets it: the golden YAML, with the study's images, resources and pod settings.

Nothing is compiled anew: components, arguments and caching are those of the file that runs on a laptop. What pods need
(image, GPU, volumes, secrets, tolerations) decides no result, so it is grafted onto the package, not passed through it.
"""
# No `from __future__ import annotations`: KFP reads a component's annotations as objects.

import tempfile
from pathlib import Path
from typing import Any

import yaml

from retune.engines.katib.pods import LABELS
from retune.errors import InputError
from retune.images import EVAL_IMAGE, TRAIN_IMAGE
from retune.launch.compiled import compiled
from retune.study import Cluster, Study
from retune.study.reach import unreachable

CREDENTIALS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE",
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_S3_ENDPOINT_URL", "HF_TOKEN",
)  # fmt: skip
"""Keys taken from the study's Secrets: KFP wants each key named, so those that storage, MLflow and the hub read."""
HEAVY = ("search", "benchmark", "train", "validate-adapter", "score")
"""Steps that train or evaluate, and so get the GPUs. Under Katib, `search` only watches the Experiment."""
USER = 10001
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
    if problems:
        raise InputError(problems, f"study {study.name!r} on a cluster")


def package(name: str, study: Study) -> str:
    """Return the pipeline `name` for the cluster of a study, as YAML of two documents: pipeline and platform.

    Raises:
        InputError: with every problem, as `check`.

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
        labels = pod.get("podMetadata", {}).get("labels", {})
        platform[label] = pod | {"podMetadata": {"labels": {**labels, **LABELS, STEP_LABEL: step}}}
    documents = [spec, {"platforms": {"kubernetes": {"deploymentSpec": {"executors": platform}}}}]
    return yaml.safe_dump_all(documents, sort_keys=True, width=1000)


def _pod(cluster: Cluster, heavy: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a step's resources and its Kubernetes settings, in KFP's own words.

    KFP and kfp-kubernetes write them: a pipeline of one empty step is compiled, and both are read off it.
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
    """Set on a task what the section `cluster` says; GPUs and the choice of nodes only where something is trained."""
    from kfp import kubernetes

    if heavy:
        task.set_cpu_request(cluster.cpu).set_memory_request(cluster.memory).set_memory_limit(cluster.memory)
        if cluster.gpus:
            task.set_accelerator_type(cluster.gpu_resource).set_accelerator_limit(cluster.gpus)
        for key, value in cluster.node_selector.items():
            kubernetes.add_node_selector(task, key, value)
        for taint in cluster.tolerations:
            kubernetes.add_toleration(task, **taint.model_dump())
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=cluster.shared_memory)
    else:
        task.set_cpu_request("500m").set_memory_request("2Gi").set_memory_limit("8Gi")
    for volume in cluster.volumes:
        kubernetes.mount_pvc(task, pvc_name=volume.claim, mount_path=volume.mount)
    for secret in cluster.secrets:
        kubernetes.use_secret_as_env(task, secret, {key: key for key in CREDENTIALS}, optional=True)
    if cluster.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(cluster.pull_secrets))
    if cluster.queue:
        kubernetes.add_pod_label(task, "kueue.x-k8s.io/queue-name", cluster.queue)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_non_root=True)
