"""Katib's webhooks for Experiments: what is filled in, and what is refused (references: katib.md §2.4, §3.1, trap 11).

After pkg/apis/controller/experiments/v1beta1/experiment_defaults.go and pkg/webhook/v1beta1/experiment/validator of
kubeflow/katib v0.19.0, in own words.
"""

import json
import math
import re
from fractions import Fraction

import yaml

from tests.katib_simulator.objects import Refused

EDITABLE = ("parallelTrialCount", "maxTrialCount", "maxFailedTrialCount")
_WEBHOOK = "experiment.katib.kubeflow.org"
_PRIMARY = {"jobset.sigs.k8s.io/replicatedjob-name": "node", "batch.kubernetes.io/job-completion-index": "0"}
_COLLECTORS = ("StdOut", "Push", "File", "TensorFlowEvent", "PrometheusMetric", "Custom")
_NAME = (
    "name must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an "
    "alphanumeric character (e.g. 'my-name', or 'abc-123', regex used for validation is '^[a-z]([-a-z0-9]*[a-z0-9])?)') "
    "and may not be longer than 40 characters. "
)
_META = re.compile(r"^\$\{trialSpec\.(Name|Namespace|Kind|APIVersion|Annotations\[.+\]|Labels\[.+\])\}$")
CONDITION = 'status.conditions.#(type=="{}")#|#(status=="True")#'
# The fields of batch/v1 that may stand in a template; others are refused as unknown
_JOB = {
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
    """Fill in defaults and refuse what Katib refuses, in its words."""
    _decode(new)
    _default(new["spec"])
    problems = list(dict.fromkeys(_problems(objects, new, old)))
    if problems:
        said = problems[0] if len(problems) == 1 else "[{}]".format(", ".join(problems))
        raise Refused(
            400, "BadRequest", f'admission webhook "validator.{_WEBHOOK}" denied the request: {said}'
        )


def _decode(new):
    """Refuse what Go cannot read into Katib's types, where text must be text."""
    spec = new["spec"]
    settings = (spec.get("algorithm") or {}).get("algorithmSettings", [])
    texts = [("algorithm.algorithmSettings.value", setting.get("value")) for setting in settings]
    for parameter in spec.get("parameters") or []:
        feasible = parameter.get("feasibleSpace", {})
        texts += [
            (f"parameters.feasibleSpace.{key}", feasible[key])
            for key in ("max", "min", "step")
            if key in feasible
        ]
        texts += [("parameters.feasibleSpace.list", value) for value in feasible.get("list", [])]
    for path, value in texts:
        if not isinstance(value, str):
            holder = "AlgorithmSetting" if path.startswith("algorithm") else "FeasibleSpace"
            text = f"json: cannot unmarshal number into Go struct field {holder}.spec.{path} of type string"
            raise Refused(
                400, "BadRequest", f'admission webhook "defaulter.{_WEBHOOK}" denied the request: {text}'
            )


def _default(spec):
    spec.setdefault("parallelTrialCount", 3)
    spec.setdefault("resumePolicy", "Never")
    spec.setdefault("metricsCollectorSpec", {"collector": {"kind": "StdOut"}})
    _default_strategies(spec.get("objective"))
    template = spec.get("trialTemplate") or {}
    kind = (template.get("trialSpec") or {}).get("kind")
    if kind in ("Job", "TrainJob"):
        template.setdefault("successCondition", CONDITION.format("Complete"))
        template.setdefault("failureCondition", CONDITION.format("Failed"))
    if kind == "TrainJob" and not template.get("primaryPodLabels"):
        template["primaryPodLabels"] = dict(_PRIMARY)
    for parameter in spec.get("parameters", []):
        parameter.setdefault("feasibleSpace", {}).setdefault("distribution", "uniform")  # for lists too
        if not parameter["feasibleSpace"].get("list", True):
            del parameter["feasibleSpace"]["list"]  # Go leaves an empty list out


def _default_strategies(objective):
    if objective is None:
        return
    strategies = objective.setdefault("metricStrategies", [])
    named = {strategy["name"] for strategy in strategies}
    best = {"minimize": "min", "maximize": "max"}.get(objective.get("type"), "latest")
    for metric in (objective.get("objectiveMetricName", ""), *objective.get("additionalMetricNames", [])):
        if metric not in named:
            strategies.append({"name": metric, "value": best})


def _invalid(path, value, detail):
    return f"{path}: Invalid value: {json.dumps(value, separators=(',', ':'))}: {detail}"


def _required(path, detail="must be specified"):
    return f"{path}: Required value: {detail}"


def _problems(objects, new, old):
    spec, name = new["spec"], new["metadata"]["name"]
    if not re.match(r"^[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > 40:
        yield _invalid("metadata.name", name, _NAME)
    most, parallel, failed = (
        spec.get("maxTrialCount"),
        spec["parallelTrialCount"],
        spec.get("maxFailedTrialCount"),
    )
    if failed is not None and failed < 0:
        yield _invalid("spec.maxFailedTrialCount", failed, "should not be less than 0")
    if most is not None and most <= 0:
        yield _invalid("spec.maxTrialCount", most, "must be greater than 0")
    if parallel <= 0:
        yield _invalid("spec.parallelTrialCount", parallel, "must be greater than 0")
    for key, value in (("maxFailedTrialCount", failed), ("parallelTrialCount", parallel)):
        if most is not None and value is not None and value > most:
            yield _invalid(f"spec.{key}", value, "should be less than or equal to spec.maxTrialCount")
    if old is not None and old["spec"] != spec:
        yield from _edit_problems(new, old)
    objective = list(_objective_problems(spec.get("objective")))
    yield from objective
    if objective:
        return
    yield from _algorithm_problems(objects, spec.get("algorithm"))
    yield from _stopping_problems(objects, spec.get("earlyStopping"))
    if spec["resumePolicy"] not in ("Never", "LongRunning", "FromVolume"):
        yield _invalid("spec.resumePolicy", spec["resumePolicy"], "invalid ResumePolicyType")
    yield from _template_problems(spec)
    if not spec.get("parameters"):
        yield _required("spec", "spec.parameters or spec.nasConfig must be specified")
    yield from _parameter_problems(spec.get("parameters", []))
    kind = spec["metricsCollectorSpec"]["collector"]["kind"]
    if kind not in _COLLECTORS:
        yield _invalid(
            "spec.metricsCollectorSpec.collector.kind", kind, f"invalid metrics collector kind: {kind}"
        )


def _edit_problems(new, old):
    from tests.katib_simulator.controller import condition

    spec = new["spec"]
    changed = {key for key in {*spec, *old["spec"]} if spec.get(key) != old["spec"].get(key)}
    done = condition(old, "Succeeded") or condition(old, "Failed")
    if done and not (
        done["reason"] == "ExperimentMaxTrialsReached" and old["spec"]["resumePolicy"] != "Never"
    ):
        yield _invalid(
            "spec.resumePolicy", spec["resumePolicy"],
            "Experiment can be restarted if it is in succeeded state by reaching max trials and spec.resumePolicy = LongRunning "
            "or spec.resumePolicy = FromVolume, when experiment is completed",
        )  # fmt: skip
    if spec.get("maxTrialCount") is not None and spec["maxTrialCount"] <= old.get("status", {}).get(
        "trials", 0
    ):
        yield _invalid(
            "spec.maxTrialCount", spec["maxTrialCount"], "must be greater than status.trials count"
        )
    if changed - set(EDITABLE):
        yield "spec: Forbidden: only spec.parallelTrialCount, spec.maxTrialCount and spec.maxFailedTrialCount are editable"


def _objective_problems(objective):
    if objective is None:
        yield _required("spec.objective")
        return
    if objective.get("type") not in ("minimize", "maximize"):
        yield _invalid("spec.objective.type", objective.get("type", ""), "must be minimize or maximize")
    if not objective.get("objectiveMetricName"):
        yield _required("spec.objective.objectiveMetricName")
    more = objective.get("additionalMetricNames", [])
    if objective.get("objectiveMetricName") in more:
        yield _invalid(
            "spec.objective.additionalMetricNames",
            more,
            "should not contain spec.objective.objectiveMetricName",
        )


def _algorithm_problems(objects, algorithm):
    if algorithm is None:
        yield _required("spec.algorithm")
        return
    name = algorithm.get("algorithmName", "")
    if not name:
        yield _required("spec.algorithm.algorithmName")
    if suggestion_config(objects, name) is None:
        yield _invalid(
            "spec.algorithm.algorithmName", name,
            f"unable to get Suggestion config data for algorithm {name}: failed to find suggestion config for algorithm: {name} "
            "in ConfigMap: katib-config",
        )  # fmt: skip


def _stopping_problems(objects, stopping):
    if stopping is None:
        return
    name = stopping.get("algorithmName", "")
    if not name:
        yield _required("spec.earlyStopping.algorithmName")
    known = [
        entry["algorithmName"] for entry in katib_config(objects).get("runtime", {}).get("earlyStoppings", [])
    ]
    if name not in known:
        yield _invalid(
            "spec.earlyStopping.algorithmName", name,
            f"unable to get EarlyStopping config data for algorithm {name}: failed to find early stopping config for algorithm: "
            f"{name} in ConfigMap: katib-config",
        )  # fmt: skip


def _parameter_problems(parameters):
    for number, parameter in enumerate(parameters):
        feasible, kind, path = (
            parameter["feasibleSpace"],
            parameter.get("parameterType", ""),
            f"spec.parameters[{number}]",
        )
        if kind not in ("int", "double", "categorical", "discrete", "unknown"):
            yield _invalid(f"{path}.parameterType", kind, f"parameterType: {kind} is not supported")
        if feasible["distribution"] not in ("uniform", "logUniform", "normal", "logNormal", "unknown"):
            flat = feasible["distribution"]
            yield _invalid(
                f"{path}.feasibleSpace.distribution", flat, f"distribution: {flat} is not supported"
            )
        if kind in ("double", "int"):
            if feasible.get("list"):
                detail = f"feasibleSpace.list is not supported for parameterType: {kind}"
                yield _invalid(f"{path}.feasibleSpace.list", feasible["list"], detail)
            if not feasible.get("min") or not feasible.get("max"):
                detail = f"feasibleSpace.max or feasibleSpace.min must be specified for parameterType: {kind}"
                yield _required(f"{path}.feasibleSpace.max", detail)
        elif kind in ("discrete", "categorical") and any(feasible.get(key) for key in ("min", "max", "step")):
            shown = {
                key: feasible[key]
                for key in ("max", "min", "list", "step", "distribution")
                if feasible.get(key)
            }
            detail = f"feasibleSpace .max, .min and .step is not supported for parameterType: {kind}"
            yield _invalid(f"{path}.feasibleSpace", shown, detail)


def _template_problems(spec):
    template, path = spec.get("trialTemplate"), "spec.trialTemplate"
    if template is None:
        yield _required(path)
        return
    if not template.get("primaryContainerName"):
        yield _required(f"{path}.primaryContainerName")
    if not template.get("successCondition") or not template.get("failureCondition"):
        yield _required(path, "successCondition and failureCondition must be specified")
    if template.get("trialParameters") is None:
        yield _required(f"{path}.trialParameters")
        return
    if template.get("trialSpec") is None:
        yield _required(
            f"{path}.TrialSource",
            "spec.trialTemplate.trialSpec or spec.trialTemplate.configMap must be specified",
        )
        return
    text = json.dumps(template["trialSpec"])
    names, seen = (
        {parameter["name"] for parameter in spec.get("parameters", [])},
        {"name": set(), "reference": set()},
    )
    for number, parameter in enumerate(template["trialParameters"]):
        here = f"{path}.trialParameters[{number}]"
        twice = [key for key in ("name", "reference") if parameter[key] in seen[key]]
        if twice:
            value = parameter[twice[0]]
            detail = (
                f"parameter {twice[0]} {value} can't be duplicated in spec.trialTemplate.trialParameters: "
            )
            yield _invalid(f"{here}.{twice[0]}", value, detail)
            continue
        for key, values in seen.items():
            values.add(parameter[key])
        if names and not _META.match(parameter["reference"]) and parameter["reference"] not in names:
            detail = f"parameter reference {parameter['reference']} does not exist in spec.parameters: "
            yield _invalid(f"{here}.reference", parameter["reference"], detail)
        placeholder = f"${{trialParameters.{parameter['name']}}}"
        if placeholder not in text:
            detail = f"parameter name: {parameter['name']} in spec.trialParameters not found in spec.trialTemplate: "
            yield _invalid(f"{here}.name", parameter["name"], detail)
            return
        text = text.replace(placeholder, "test-value")
    if left := re.findall(r"\$\{trialParameters\..+?\}", text):
        detail = f"parameters: [{' '.join(left)}] in spec.trialTemplate not found in spec.trialParameters: "
        yield _invalid(path, "", detail)
    made = json.loads(text)
    if {"name", "namespace"} & set(made.get("metadata", {})):
        yield _invalid(path, "", "metadata.name and metadata.namespace in spec.trialTemplate must be omitted")
    if made["kind"] == "Job":
        yield from _job_problems(made)


def _written_by_kubernetes(quantity):
    """A quantity in its canonical form (apimachinery, pkg/api/resource): no fraction, and the largest unit."""
    value, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", quantity).groups()
    units = ["", "Ki", "Mi", "Gi", "Ti", "Pi"] if unit.endswith("i") else ["m", "", "k", "M", "G", "T", "P"]
    factor, power = (1024 if unit.endswith("i") else 1000), units.index(unit)
    value = Fraction(value)
    while value.denominator > 1 and power:
        value, power = value * factor, power - 1
    while value and value % factor == 0 and power + 1 < len(units):
        value, power = value / factor, power + 1
    return f"{math.ceil(value)}{units[power]}"


def _job_problems(made):
    pod = made["spec"]["template"]["spec"]
    for number, volume in enumerate(pod.get("volumes", [])):
        limit = (volume.get("emptyDir") or {}).get("sizeLimit")
        # Katib converts the template to a Job and back, and compares: a quantity in another form differs
        if limit is not None and limit != _written_by_kubernetes(limit):
            yield _invalid(
                "spec.trialTemplate",
                "",
                f"invalid spec.trialTemplate: unable to convert: /spec/template/spec/volumes/{number}/emptyDir/sizeLimit - {limit} "
                "to Job, converted template: ",
            )
            return
    for number, taint in enumerate(pod.get("tolerations", [])):
        if taint.get("value") == "":
            detail = f"unable to convert: /spec/template/spec/tolerations/{number}/value -  to Job, converted template: "
            yield _invalid("spec.trialTemplate", "", f"invalid spec.trialTemplate: {detail}")
            return
    places = [("/spec", made["spec"], _JOB["spec"]), ("/spec/template/spec", pod, _JOB["pod"])]
    places += [
        (f"/spec/template/spec/containers/{n}", c, _JOB["container"]) for n, c in enumerate(pod["containers"])
    ]
    for path, there, known in places:
        for key in sorted(set(there) - known):
            value = there[key]
            shown = "[{}]".format(" ".join(map(str, value))) if isinstance(value, list) else value
            yield _invalid(
                "spec.trialTemplate",
                "",
                f"invalid spec.trialTemplate: unable to convert: {path}/{key} - {shown} to Job, converted template: ",
            )
            return
