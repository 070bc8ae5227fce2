"""Checks whether the API server of a Kubernetes version would accept an object: `problems(document, version)`.

Kubernetes' own kinds are held against the schemas in `kubernetes-validate`, in which no unknown field is allowed.
Katib's and Trainer's go through the typed models of `kubeflow-katib-api` and `kubeflow-trainer-api`: those drop what
they do not know, so an object must survive the round trip unchanged. An unknown kind is a problem, too.
"""

import functools
import json
import re

import kubernetes_validate
from kubeflow_katib_api import models as katib
from kubeflow_trainer_api import models as trainer
from pydantic import ValidationError

OLDEST = (1, 29)  # as Chart.yaml says
VERSIONS = sorted(
    {
        found
        for text in kubernetes_validate.utils.all_versions()
        if (found := tuple(map(int, text.split(".")[:2]))) >= OLDEST
    }
)
_TYPED = {
    ("kubeflow.org/v1beta1", "Experiment"): katib.V1beta1Experiment,
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): trainer.TrainerV1alpha1TrainJob,
    ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime"): trainer.TrainerV1alpha1TrainingRuntime,
}
# After apis/kueue/v1beta1/localqueue_types.go of kubernetes-sigs/kueue: the fields of a LocalQueue that one writes.
# First level of the kinds for which no Python package has models
_FIELDS = {
    ("monitoring.coreos.com/v1", "PodMonitor"): {"selector", "podMetricsEndpoints"},
    ("monitoring.coreos.com/v1", "ServiceMonitor"): {"selector", "endpoints"},
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): {"parentRefs", "hostnames", "rules"},
    ("serving.kserve.io/v1beta1", "InferenceService"): {"predictor"},
    ("argoproj.io/v1alpha1", "EventSource"): {"minio", "template"},
    ("argoproj.io/v1alpha1", "Sensor"): {"dependencies", "triggers", "template"},
}
_LOCAL_QUEUE = {"clusterQueue", "stopPolicy"}
# It would read the megabytes of a version's schemas again for every object
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


def problems(document, version):
    """Return the problems of an object under a version such as (1, 31); none if it would be accepted."""
    kind = document["apiVersion"], document["kind"]
    if kind in _TYPED:
        return _typed(_TYPED[kind], document) + _inner(document, version)
    if kind[0].startswith("kueue.x-k8s.io/") and kind[1] == "LocalQueue":
        unknown = set(document["spec"]) - _LOCAL_QUEUE
        return [f"spec: unknown fields {sorted(unknown)}"] if unknown else []
    if kind in _FIELDS:
        unknown = set(document["spec"]) - _FIELDS[kind]
        inner = [
            problem
            for trigger in document["spec"].get("triggers", [])
            for problem in problems(trigger["template"]["k8s"]["source"]["resource"], version)
        ]
        return ([f"spec: unknown fields {sorted(unknown)}"] if unknown else []) + inner
    try:
        kubernetes_validate.validate(document, "{}.{}".format(*version), strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError as error:
        return [error.message]
    return []


def _typed(model, document):
    try:
        kept = json.loads(json.dumps(model.from_dict(document).to_dict(), default=str))
    except (ValidationError, ValueError) as error:
        return [str(error)]
    return list(_differences(document, kept, ""))


def _differences(given, kept, path):
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key not in kept:
                yield f"{path}.{key}: unknown field"
            else:
                yield from _differences(value, kept[key], f"{path}.{key}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for number, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from _differences(one, other, f"{path}.{number}")
    elif given != kept:
        yield f"{path}: {given!r} would be kept as {kept!r}"


def _inner(document, version):
    """Return what is wrong with the trial of an Experiment, once Katib has put values for its placeholders."""
    template = document["spec"].get("trialTemplate")
    if template is None:
        return []
    text = re.sub(r"\$\{trialParameters\.\w+\}", "1", json.dumps(template["trialSpec"]))
    return problems(json.loads(text), version)
