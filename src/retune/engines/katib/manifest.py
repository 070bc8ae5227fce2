"""The objects on the cluster: the Experiment of a search, Jobs for what Katib does not run, and the TrainJobs' runtime.

A trial's command must need no shell quoting, because Katib joins command and arguments with spaces into `sh -c`;
hyper-parameters are passed as environment variables, which the shell does not expand. Katib inserts values into the
template by replacing text, so a placeholder always is a whole string.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubeflow_katib_api import models
from kubernetes import client

from retune import store
from retune.engines.katib import algorithms, pods
from retune.errors import InputError
from retune.search import Objective, Observation
from retune.space import Value
from retune.study import Study
from retune.trials.task import TrialTask

SEARCH_LABEL = "retune.dev/search"
"""Label with the digest of the search, by which a restarted engine finds its objects, together with `STUDY_LABEL`: two
studies may have searches with the same digest."""
STUDY_LABEL = "retune.dev/study"
FOLDER = "retune.dev/folder"
"""Annotation with the search's folder, since one study may be run into several."""
TRIAL_LABEL = "retune.dev/trial"
TRAINER = "trainer.kubeflow.org/v1alpha1"
_TRIAL_NAME = "${trialParameters.trialName}"
# `name` adds 6 characters, Katib 9 for a trial, and a TrainJob 16 for its pod; the limit is 63
_MAX_NAME = 24
_MEDIANSTOP = ("min_trials_required", "start_step")
_COURSE = ("validation_loss", "train_loss")  # what a trial reports more than once
_METRIC = re.compile(r"[\w|-]+")  # names that the default filter of Katib's metrics collector matches


@dataclass(frozen=True)
class Place:
    """The URIs of a search, as its pods see them: its folder, which holds `study.json`, and the mixed data."""

    folder: str
    data: str

    @property
    def digest(self) -> str:
        """The digest in the folder's name, ``search-<digest>``."""
        return self.folder.rstrip("/").rsplit("/", 1)[-1].removeprefix("search-")

    @property
    def study(self) -> str:
        """URI of the resolved study."""
        return store.join(self.folder, "study.json")

    @property
    def trials(self) -> str:
        """URI of the folder that holds one folder for each of Katib's trials, by its name there."""
        return store.join(self.folder, "katib")


def check(study: Study, place: Place | None = None) -> None:
    """Refuse what cannot run on the cluster.

    Raises:
        InputError: with every problem.

    """
    problems = algorithms.problems(study)
    if study.cluster.images.train is None:
        problems.append("`cluster.images.train`, the image that trials run, is required under Katib")
    problems += _unreachable(study, place)
    metrics = [study.search.objective.metric, *_additional(study)]
    bad = [name for name in metrics if not _METRIC.fullmatch(name)]
    if bad:
        problems.append(f"Katib reads metric names of letters, digits, `_`, `-` and `|` alone, but got {bad}")
    stopping = study.cluster.katib.early_stopping_settings
    if unknown := sorted(set(stopping) - set(_MEDIANSTOP)):
        problems.append(
            f"`cluster.katib.early_stopping_settings` may hold {list(_MEDIANSTOP)}, but got {unknown}"
        )
    problems += _stopping_problems(study)
    if study.search.objective.metric in _additional(study):
        problems.append(
            f"Katib takes no constraint on the objective itself, but got one on {study.search.objective.metric!r}: "
            "remove it from `search.constraints`"
        )
    if place is not None:
        words = [word.replace(_TRIAL_NAME, "trial") for word in _command(study, place)]
        quoted = [word for word in words if shlex.quote(word) != word]
        if quoted:
            problems.append(
                f"Katib passes a trial's command to a shell, so its words must need no quoting, but got {quoted}"
            )
    if problems:
        raise InputError(problems, f"study {study.name!r} under Katib")


def _stopping_problems(study: Study) -> list[str]:
    """Return what keeps `cluster.katib.early_stopping` from stopping the right trials, or any."""
    katib, wanted = study.cluster.katib, study.search
    if katib.early_stopping is None:
        if not katib.early_stopping_settings:
            return []
        return [
            "`cluster.katib.early_stopping_settings` are those of `cluster.katib.early_stopping`, which is not given: "
            "remove them, or give it; `search.stopping` has options of its own"
        ]
    goals = [goal.metric for goal in wanted.objectives]
    if len(goals) == 1 and goals[0] in _COURSE:
        return []
    return [
        "`cluster.katib.early_stopping` compares what trials report during their training, so the objective must be one of "
        f"{list(_COURSE)} alone, but got {goals}: remove `cluster.katib.early_stopping`, or change `search.objective`"
    ]


def _unreachable(study: Study, place: Place | None) -> list[str]:
    """Return a problem for each path that a pod on another machine cannot reach."""
    paths = {"artifacts.uri": study.artifacts.uri, "model.base": study.model.base}
    if place is not None:
        paths |= {"the search's folder": place.folder, "the mixed data": place.data}
    mounts = [volume.mount.rstrip("/") + "/" for volume in study.cluster.volumes]
    return [
        f"pods must reach `{key}`: an s3:// address, or a path below a mount of `cluster.volumes` {mounts}, but got {path}"
        for key, path in paths.items()
        if path.startswith("/") and not any(f"{path}/".startswith(mount) for mount in mounts)
    ]


def _additional(study: Study) -> list[str]:
    return Objective.of(study.search).additional_metrics


def experiment(
    study: Study, place: Place, trials: int, max_failed: int | None = None, warm: Sequence[Observation] = ()
) -> dict[str, Any]:
    """Return the Experiment of a study's search, complete, as JSON.

    Args:
        study: the study.
        place: the URIs of its search.
        trials: how many trials Katib runs.
        max_failed: at how many failures it stops.
        warm: results of earlier trials for the algorithm.

    Raises:
        InputError: for what cannot run on the cluster, with every problem.

    """
    check(study, place)
    wanted, cluster = study.search, study.cluster
    spec = models.V1beta1ExperimentSpec(
        objective=_objective(study),
        algorithm=algorithms.spec(study, warm),
        early_stopping=_stopping(study),
        parallel_trial_count=min(wanted.at_once, trials),
        max_trial_count=trials,
        max_failed_trial_count=None if max_failed is None else min(max_failed, trials),
        resume_policy=cluster.katib.resume,
        metrics_collector_spec=models.V1beta1MetricsCollectorSpec(
            collector=models.V1beta1CollectorSpec(kind="StdOut")
        ),
        parameters=algorithms.parameters(study),
        trial_template=_template(study, place),
    )
    manifest = models.V1beta1Experiment(api_version="kubeflow.org/v1beta1", kind="Experiment", spec=spec)
    content: dict[str, Any] = {
        "apiVersion": manifest.api_version,
        "kind": manifest.kind,
        "metadata": {
            "generateName": f"{short(study.name)}-",
            **_namespaced(study),
            "labels": _labels(study, place),
            "annotations": {FOLDER: place.folder},
        },
        "spec": spec.to_dict(),
    }
    return content


def _stopping(study: Study) -> models.V1beta1EarlyStoppingSpec | None:
    """Return Katib's early stopping, as `cluster.katib.early_stopping` names it or for `search.stopping: median`.

    Katib's medianstop compares a trial's best loss so far, from its report number `start_step` on, with the mean of the
    finished trials' first `start_step` reports. The first report is the one at the first rung, where `retune trial` measures.
    """
    katib, stopping = study.cluster.katib, study.search.stopping
    name, settings = katib.early_stopping, katib.early_stopping_settings
    if stopping is not None:
        name, settings = "medianstop", {"min_trials_required": stopping.startup, "start_step": 1}
    if name is None:
        return None
    return models.V1beta1EarlyStoppingSpec(
        algorithm_name=name,
        algorithm_settings=[
            models.V1beta1EarlyStoppingSetting(name=key, value=str(value)) for key, value in settings.items()
        ],
    )


def failures(study: Study) -> int | None:
    """Return the number of failed trials at which Katib stops; a study's `max_failed` is the most that are allowed."""
    return None if study.search.max_failed is None else study.search.max_failed + 1


def _objective(study: Study) -> models.V1beta1ObjectiveSpec:
    """Return the objective; metrics count by their last value, as in a trial's record, not by Katib's default, the best."""
    metric, additional = study.search.objective.metric, _additional(study)
    return models.V1beta1ObjectiveSpec(
        type=study.search.objective.goal,
        objective_metric_name=metric,
        additional_metric_names=additional or None,
        metric_strategies=[
            models.V1beta1MetricStrategy(name=name, value="latest") for name in (metric, *additional)
        ],
    )


def _template(study: Study, place: Place) -> models.V1beta1TrialTemplate:
    names = study.search.space.names
    env = {f"RETUNE_HP_{name.upper()}": f"${{trialParameters.{name}}}" for name in names}
    of_trial = [models.V1beta1TrialParameterSpec(name=name, reference=name) for name in names]
    of_trial.append(models.V1beta1TrialParameterSpec(name="trialName", reference="${trialSpec.Name}"))
    katib = study.cluster.katib
    make = _train_job if katib.trial == "TrainJob" else _job
    return models.V1beta1TrialTemplate(
        primary_container_name="node" if katib.trial == "TrainJob" else pods.CONTAINER,
        retain=katib.keep,
        trial_parameters=of_trial,
        trial_spec=make(study, place, _command(study, place), env),
        **_CONDITIONS[katib.trial],
    )


# Katib's defaults, which it fills in only for some sources of a template
_CONDITIONS: dict[str, dict[str, Any]] = {
    "Job": {
        "success_condition": 'status.conditions.#(type=="Complete")#|#(status=="True")#',
        "failure_condition": 'status.conditions.#(type=="Failed")#|#(status=="True")#',
    },
    "TrainJob": {
        "success_condition": 'status.conditions.#(type=="Complete")#|#(status=="True")#',
        "failure_condition": 'status.conditions.#(type=="Failed")#|#(status=="True")#',
        "primary_pod_labels": {
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "batch.kubernetes.io/job-completion-index": "0",
        },
    },
}


def _command(study: Study, place: Place, task: TrialTask | None = None) -> list[str]:
    """Return the command of one of Katib's trials, or of a `task` that the engine runs in a Job of its own."""
    start = ["retune"]
    if study.cluster.gpus > 1:
        start = ["torchrun", "--standalone", f"--nproc-per-node={study.cluster.gpus}", "-m", "retune"]
    words = [*start, "trial", place.study, "--data", place.data]
    if task is None:
        return [*words, "--out", store.join(place.trials, _TRIAL_NAME), "--trial", _TRIAL_NAME]
    words += ["--out", task.folder, "--trial", task.trial, "--number", str(task.number)]
    return [*words, "--role", task.role, "--seed", str(task.seed)]


def _job(study: Study, place: Place, words: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    manifest = client.V1Job(
        api_version="batch/v1",
        kind="Job",
        metadata=client.V1ObjectMeta(labels=_labels(study, place)),
        spec=pods.job_spec(study, words, env),
    )
    content: dict[str, Any] = client.ApiClient().sanitize_for_serialization(manifest)
    return content


def _train_job(study: Study, place: Place, words: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    """Return a TrainJob; volumes, secrets, certificates and node selection are those of its runtime, see `runtime`."""
    resources = pods.resources(study)
    return {
        "apiVersion": TRAINER,
        "kind": "TrainJob",
        "metadata": {"labels": _labels(study, place)},
        "spec": {
            "runtimeRef": {
                "apiGroup": TRAINER.split("/", maxsplit=1)[0],
                "kind": "TrainingRuntime",
                "name": study.cluster.katib.runtime,
            },
            "trainer": {
                "numNodes": 1,
                "image": study.cluster.images.train,
                "command": list(words),
                "env": [
                    {"name": name, "value": value} for name, value in {**study.cluster.env, **env}.items()
                ],
                "resourcesPerNode": {"requests": resources.requests, "limits": resources.limits},
            },
        },
    }


def runtime(study: Study) -> dict[str, Any]:
    """Return the TrainingRuntime of TrainJob trials: one job `node`, without initializers, whose pods Katib 0.19 refuses."""
    check(study)
    spec = client.ApiClient().sanitize_for_serialization(
        pods.job_spec(study, ["retune", "--help"], {}, "node")
    )
    return {
        "apiVersion": TRAINER,
        "kind": "TrainingRuntime",
        "metadata": {"name": study.cluster.katib.runtime, **_namespaced(study)},
        "spec": {
            "mlPolicy": {"numNodes": 1},
            "template": {
                "spec": {
                    "replicatedJobs": [
                        {
                            "name": "node",
                            "template": {
                                "metadata": {
                                    "labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
                                },
                                "spec": spec,
                            },
                        }
                    ]
                }
            },
        },
    }


def job(study: Study, place: Place, task: TrialTask) -> dict[str, Any]:
    """Return a Job for a task that the engine runs itself: the untuned base, the default setting, a repeat."""
    env = {f"RETUNE_HP_{name.upper()}": _text(value) for name, value in task.assignment.items()}
    content = _job(study, place, _command(study, place, task), env)
    content["metadata"] |= {"name": job_name(study, place, task), **_namespaced(study)}
    content["metadata"]["labels"][TRIAL_LABEL] = task.trial
    return content


def job_name(study: Study, place: Place, task: TrialTask) -> str:
    """Return the name of the Job for a task."""
    return f"{short(study.name)}-{hashlib.sha256(place.folder.encode()).hexdigest()[:8]}-{task.trial}"


def _text(value: Value) -> str:
    return value if isinstance(value, str) else repr(value)


def short(name: str) -> str:
    """Return the first part of object names for a study: it begins with a letter and leaves room for suffixes."""
    label = name if name[0].isalpha() else f"s{name}"
    return label[:_MAX_NAME].rstrip("-")


def name(study: Study, place: Place, namespace: str, earlier: int) -> str:
    """Return the name of a search's Experiment after `earlier` ones.

    It is a function of the search, so that a repeated request, or a second engine, creates no second Experiment. It
    includes the namespace, since Katib sends a suggestion service the trials of equally named Experiments elsewhere too.
    """
    text = f"{namespace} {place.folder} {earlier}"
    return f"{short(study.name)}-{hashlib.sha256(text.encode()).hexdigest()[:5]}"


def _labels(study: Study, place: Place) -> dict[str, str]:
    queue = {"kueue.x-k8s.io/queue-name": study.cluster.queue} if study.cluster.queue else {}
    return {**pods.LABELS, STUDY_LABEL: study.name, SEARCH_LABEL: place.digest, **queue}


def selector(study: Study, place: Place) -> str:
    """Return the label selector of a search's objects on the cluster."""
    return f"{SEARCH_LABEL}={place.digest},{STUDY_LABEL}={study.name}"


def folder_of(experiment: Mapping[str, Any]) -> str | None:
    """Return the folder of an Experiment's search; None for one of an older release, which has no such annotation."""
    folder: str | None = (experiment["metadata"].get("annotations") or {}).get(FOLDER)
    return folder


def _namespaced(study: Study) -> dict[str, str]:
    return {"namespace": study.cluster.namespace} if study.cluster.namespace else {}
