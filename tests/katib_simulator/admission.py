"""Katib's webhooks for Experiments: what is filled in, and what is refused (references: katib.md §2.4, §3.1, trap 11).

After pkg/apis/controller/experiments/v1beta1/experiment_defaults.go and pkg/webhook/v1beta1/experiment/validator of
kubeflow/katib v0.19.0, in own words.
"""

import json
import re

import yaml

from tests.katib_simulator.objects import Refused

EDITABLE = ("parallelTrialCount", "maxTrialCount", "maxFailedTrialCount")
_META = re.compile(r"^\$\{trialSpec\.(Name|Namespace|Kind|APIVersion|Annotations\[.+\]|Labels\[.+\])\}$")
CONDITION = 'status.conditions.#(type=="{}")#|#(status=="True")#'
_JOB = {  # the fields of batch/v1 that may stand in a template; others are refused as unknown
    "spec": {"backoffLimit", "activeDeadlineSeconds", "podFailurePolicy", "template", "ttlSecondsAfterFinished", "parallelism", "completions", "suspend"},
    "pod": {"containers", "initContainers", "volumes", "restartPolicy", "serviceAccountName", "automountServiceAccountToken",
            "imagePullSecrets", "nodeSelector", "tolerations", "securityContext", "affinity", "shareProcessNamespace"},
    "container": {"name", "image", "command", "args", "env", "envFrom", "resources", "volumeMounts", "securityContext", "imagePullPolicy", "ports"},
}  # fmt: skip


def katib_config(objects):
    """The KatibConfig; it is read anew at each use."""
    found = objects.find("configmaps", "kubeflow", "katib-config")
    return yaml.safe_load(found["data"]["katib-config.yaml"]) if found else {}


def suggestion_config(objects, algorithm):
    """The entry of an algorithm, None if it is not registered; of two the last one counts."""
    entries = katib_config(objects).get("runtime", {}).get("suggestions", [])
    return next((entry for entry in reversed(entries) if entry.get("algorithmName") == algorithm), None)


def admit(objects, new, old):
    """Fill in defaults and refuse what Katib refuses."""
    _default(new["spec"])
    problems = list(_problems(objects, new, old))
    if problems:
        raise Refused(403, "Forbidden", f"admission webhook denied the request: {problems}")


def _default(spec):
    spec.setdefault("parallelTrialCount", 3)
    spec.setdefault("resumePolicy", "Never")
    spec.setdefault("metricsCollectorSpec", {"collector": {"kind": "StdOut"}})
    objective = spec["objective"]
    strategies = objective.setdefault("metricStrategies", [])
    named = {strategy["name"] for strategy in strategies}
    best = {"minimize": "min", "maximize": "max"}.get(objective.get("type"), "latest")
    for metric in (objective["objectiveMetricName"], *objective.get("additionalMetricNames", [])):
        if metric not in named:
            strategies.append({"name": metric, "value": best})
    template = spec["trialTemplate"]
    kind = template.get("trialSpec", {}).get("kind")
    if kind in ("Job", "TrainJob"):
        template.setdefault("successCondition", CONDITION.format("Complete"))
        template.setdefault("failureCondition", CONDITION.format("Failed"))
    for parameter in spec.get("parameters", []):
        parameter.setdefault("feasibleSpace", {}).setdefault("distribution", "uniform")  # for lists too


def _problems(objects, new, old):
    spec, name = new["spec"], new["metadata"]["name"]
    if not re.match(r"^[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > 40:
        yield f"name {name!r} must be at most 40 lower-case characters and start with a letter"
    most, parallel = spec.get("maxTrialCount"), spec["parallelTrialCount"]
    for key in EDITABLE:
        if spec.get(key) is not None and (
            type(spec[key]) is not int or spec[key] < (key != "maxFailedTrialCount")
        ):
            yield f"{key} must be a whole number greater than 0"
    if most is not None and parallel > most:
        yield "parallelTrialCount should be less than or equal to spec.maxTrialCount"
    if most is not None and spec.get("maxFailedTrialCount", 0) > most:
        yield "maxFailedTrialCount should be less than or equal to spec.maxTrialCount"
    if old is not None and old["spec"] != spec:
        yield from _edit_problems(new, old)
    if spec["objective"].get("type") not in ("minimize", "maximize"):
        yield "objective.type must be minimize or maximize"
    if spec["objective"]["objectiveMetricName"] in spec["objective"].get("additionalMetricNames", []):
        yield "additionalMetricNames should not contain objectiveMetricName"
    if suggestion_config(objects, spec["algorithm"]["algorithmName"]) is None:
        yield f"unable to get Suggestion config data for algorithm {spec['algorithm']['algorithmName']}"
    for setting in spec["algorithm"].get("algorithmSettings", []):
        if not isinstance(setting["value"], str):
            yield f"cannot unmarshal number into Go struct field AlgorithmSetting.value: {setting}"
    if spec["resumePolicy"] not in ("Never", "LongRunning", "FromVolume"):
        yield "invalid ResumePolicyType"
    if not spec.get("parameters"):
        yield "spec.parameters must be specified"
    yield from _parameter_problems(spec.get("parameters", []))
    yield from _template_problems(spec)


def _edit_problems(new, old):
    from tests.katib_simulator.controller import condition

    changed = {key for key in {*new["spec"], *old["spec"]} if new["spec"].get(key) != old["spec"].get(key)}
    if changed - set(EDITABLE):
        yield f"only {EDITABLE} are editable, but {sorted(changed)} changed"
    done = condition(old, "Succeeded") or condition(old, "Failed")
    if done and not (
        done["reason"] == "ExperimentMaxTrialsReached" and new["spec"]["resumePolicy"] != "Never"
    ):
        yield "Experiment can be restarted if it is in succeeded state by reaching max trials and resumePolicy is not Never"
    if new["spec"].get("maxTrialCount", 10**9) <= old.get("status", {}).get("trials", 0):
        yield "maxTrialCount must be greater than status.trials count"


def _parameter_problems(parameters):
    for parameter in parameters:
        feasible, kind = parameter["feasibleSpace"], parameter["parameterType"]
        if any(
            not isinstance(text, str)
            for text in (*feasible.get("list", []), *(feasible.get(k, "") for k in ("min", "max", "step")))
        ):
            yield f"cannot unmarshal number into Go struct field FeasibleSpace of {parameter['name']}"
        if kind in ("double", "int") and (
            "list" in feasible or not feasible.get("min") or not feasible.get("max")
        ):
            yield f"{parameter['name']}: min and max, and no list, for {kind}"
        if kind in ("discrete", "categorical") and {"min", "max", "step"} & set(feasible):
            yield f"{parameter['name']}: no min, max or step for {kind}"


def _template_problems(spec):
    template = spec["trialTemplate"]
    for key in (
        "primaryContainerName",
        "successCondition",
        "failureCondition",
        "trialParameters",
        "trialSpec",
    ):
        if not template.get(key):
            yield f"trialTemplate.{key} must be specified"
            return
    text = json.dumps(template["trialSpec"])
    names = {parameter["name"] for parameter in spec.get("parameters", [])}
    for key in ("name", "reference"):
        found = [parameter[key] for parameter in template["trialParameters"]]
        if len(set(found)) < len(found):
            yield f"trialParameters: {key} can't be duplicated"
    for parameter in template["trialParameters"]:
        if not _META.match(parameter["reference"]) and parameter["reference"] not in names:
            yield f"parameter reference {parameter['reference']} does not exist in spec.parameters"
        placeholder = f"${{trialParameters.{parameter['name']}}}"
        if placeholder not in text:
            yield f"{placeholder} not found in spec.trialTemplate"
        text = text.replace(placeholder, "test-value")
    if "${trialParameters." in text:
        yield "spec.trialTemplate has placeholders that are no trialParameters"
    made = json.loads(text)
    if {"name", "namespace"} & set(made.get("metadata", {})):
        yield "metadata.name and metadata.namespace in spec.trialTemplate must be omitted"
    if made["kind"] == "Job":
        pod = made["spec"]["template"]["spec"]
        unknown = set(made["spec"]) - _JOB["spec"] | set(pod) - _JOB["pod"]
        unknown |= {key for container in pod["containers"] for key in container} - _JOB["container"]
        if unknown:
            yield f"unable to convert to Job: unknown fields {sorted(unknown)}"
