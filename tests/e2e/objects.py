"""The objects that tests create on the cluster besides the chart: the study, and the pod that runs it."""

import yaml

from tests.conftest import ROOT
from tests.katib_simulator.conversation import experiment

SECRETS = ("retune-storage", "retune-mlflow-login")
KEYS = {"AWS_ACCESS_KEY_ID": "retune", "AWS_SECRET_ACCESS_KEY": "retune-e2e"}
IMAGES = ("suggestion", "train", "eval")
STUDY = ROOT / "k8s/experiments/study-kind.yaml"
TRIALS, SUGGESTIONS = "katib.kubeflow.org/trial", "katib.kubeflow.org/deployment"  # labels of their pods
INPUTS = {"bases/tiny": ROOT / "examples/base/tiny", "data": ROOT / "examples/data"}


def values(namespace, registry, tag):
    """The chart's values, as words for Helm."""
    given = {
        "images.registry": registry, "images.tag": tag, "mlflow.workers": "1",
        "storage.uri": "s3://retune", "storage.endpoint": f"http://seaweedfs.{namespace}.svc.cluster.local:9000",
        "storage.accessKeyId": KEYS["AWS_ACCESS_KEY_ID"], "storage.secretAccessKey": KEYS["AWS_SECRET_ACCESS_KEY"],
        "networkPolicy.storage.namespace": namespace,
    }  # fmt: skip
    return [
        word
        for key, value in given.items()
        for word in ("--set-string" if key == "images.tag" else "--set", f"{key}={value}")
    ]


def environment():
    """Return where a pod finds the storage and MLflow's account; a release of before the login has no account."""
    return [{"secretRef": {"name": name, "optional": name != "retune-storage"}} for name in SECRETS]


def overrides(namespace, registry, tag, name, *more):
    """What of the study is this cluster's and this run's: the demo's, made small."""
    images = {image: f"{registry}/retune-{image}:{tag}".lstrip("/") for image in IMAGES}
    return [
        f"name={name}", f"promote.model={name}", "data.train=40", "data.validation=20", "training.epochs=1",
        "search.trials=4", "search.parallel=2", "search.repeats=0", "benchmark.tasks=[]", "select.weights={}", "report.answers=0",
        f"cluster.namespace={namespace}", f"cluster.secrets=[{','.join(SECRETS)}]", f"cluster.images.train={images['train']}", f"cluster.images.eval={images['eval']}",
        "cluster.cpu=100m", f"tracking.uri=http://retune-mlflow.{namespace}.svc.cluster.local:5000", *more,
    ]  # fmt: skip


def run_job(namespace, registry, tag, name, *more, job=None):
    """The study file, and a Job that does what `retune run` does on a laptop, with the rights of a study.

    Its folder is the pod's own volume: what a study needs to resume is in the bucket.
    """
    job = job or f"run-{name}"
    given = ["/study/study.yaml", *overrides(namespace, registry, tag, name, *more), "--json"]
    # The logs go with the pod, so what a failed run leaves in them is printed.
    script = (
        'retune run "$@" && exit; code=$?; tail -n 80 /tmp/.cache/retune/work/*/logs/*.log >&2; exit $code'
    )
    words = ["sh", "-c", script, "run", *given]
    container = {
        "name": "run",
        "image": f"{registry}/retune-train:{tag}".lstrip("/"),
        "command": words,
        "env": [{"name": "HOME", "value": "/tmp"}],
        "envFrom": environment(),
        "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}},
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
        "volumes": [{"name": "study", "configMap": {"name": "study"}}, {"name": "tmp", "emptyDir": {}}],
    }  # fmt: skip
    yield {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "study"},
        "data": {"study.yaml": STUDY.read_text()},
    }
    yield {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job},
        "spec": {
            "backoffLimit": 0,
            # As Kubeflow does with a step whose node is drained: another pod carries the study on.
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
                ]
            },
            "template": {"metadata": {"labels": {"sidecar.istio.io/inject": "false"}}, "spec": pod},
        },
    }


def start(cluster, images, name, *more, job=None):
    """Start `retune run` as a Job and return its name."""
    cluster.apply(*run_job(cluster.namespace, *images, name, *more, job=job))
    return job or f"run-{name}"


def storage():
    return list(yaml.safe_load_all((ROOT / "tests/e2e/storage.yaml").read_text()))


def search(place, images, name, command):
    """Start an Experiment of one trial, which runs this command, under an algorithm of ours."""
    registry, tag = images
    content = experiment(f"{registry}/retune-suggestion:{tag}".lstrip("/"), name)
    spec = content["spec"]
    spec |= {"maxTrialCount": 1, "maxFailedTrialCount": 1, "resumePolicy": "Never"}
    spec["algorithm"] = {"algorithmName": "lhs"}
    (container,) = spec["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]["containers"]
    (script,) = [entry for entry in container["env"] if entry["name"] == "SCRIPT"]
    script["value"] = command
    place.apply(content)
