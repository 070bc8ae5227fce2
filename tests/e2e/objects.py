"""What the test puts onto the cluster besides the chart: the study, and the pod that runs it."""

import yaml

from tests.conftest import ROOT

KEYS = {"AWS_ACCESS_KEY_ID": "retune", "AWS_SECRET_ACCESS_KEY": "retune-e2e"}
IMAGES = ("suggestion", "train", "eval")
STUDY = ROOT / "k8s/experiments/study-kind.yaml"
INPUTS = {"bases/tiny": ROOT / "examples/base/tiny", "data": ROOT / "examples/data"}


def values(namespace, registry, tag):
    """The chart's values, as words for Helm."""
    given = {
        "images.registry": registry, "images.tag": tag, "mlflow.workers": "1",
        "storage.uri": "s3://retune", "storage.endpoint": f"http://minio.{namespace}.svc.cluster.local:9000",
        "storage.accessKeyId": KEYS["AWS_ACCESS_KEY_ID"], "storage.secretAccessKey": KEYS["AWS_SECRET_ACCESS_KEY"],
        "networkPolicy.storage.namespace": namespace,
    }  # fmt: skip
    return [
        word
        for key, value in given.items()
        for word in ("--set-string" if key == "images.tag" else "--set", f"{key}={value}")
    ]


def overrides(namespace, registry, tag, algorithm):
    """What of the study is this cluster's and this run's."""
    images = {name: f"{registry}/retune-{name}:{tag}".lstrip("/") for name in IMAGES}
    return [
        f"name=e2e-{algorithm}", f"promote.model=e2e-{algorithm}", f"search.algorithm={algorithm}",
        "search.trials=4", "search.parallel=2", "search.repeats=0", "benchmark.tasks=[]", "select.weights={}",
        f"cluster.namespace={namespace}", f"cluster.images.train={images['train']}", f"cluster.images.eval={images['eval']}",
        f"tracking.uri=http://retune-mlflow.{namespace}.svc.cluster.local:5000",
    ]  # fmt: skip


def run_job(namespace, registry, tag, algorithm):
    """The study file, and a Job that does what `retune run` does on a laptop, with the rights of a study."""
    name = f"run-{algorithm}"
    words = ["retune", "run", "/study/study.yaml", *overrides(namespace, registry, tag, algorithm), "--json"]
    container = {
        "name": "run",
        "image": f"{registry}/retune-train:{tag}".lstrip("/"),
        "command": words,
        "env": [{"name": "HOME", "value": "/tmp"}],
        "envFrom": [{"secretRef": {"name": "retune-storage"}}],
        "resources": {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"memory": "4Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "study", "mountPath": "/study"}, {"name": "tmp", "mountPath": "/tmp"}],
    }  # fmt: skip
    pod = {
        "restartPolicy": "Never",
        "serviceAccountName": "retune",
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": 10001, "fsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "study", "configMap": {"name": name}}, {"name": "tmp", "emptyDir": {}}],
    }  # fmt: skip
    yield {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"study.yaml": STUDY.read_text()},
    }
    yield {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "backoffLimit": 0,
            "template": {"metadata": {"labels": {"sidecar.istio.io/inject": "false"}}, "spec": pod},
        },
    }


def storage():
    return list(yaml.safe_load_all((ROOT / "tests/e2e/storage.yaml").read_text()))
