"""Katib's controllers for Experiments, Suggestions and Trials, one step at a time (references: katib.md §0, §1.5, §1.6, §3.7).

After pkg/controller.v1beta1 of kubeflow/katib v0.19.0, in own words. What the world may do to them is in `Cluster`.
"""

import json
import math
import random
from datetime import UTC, datetime, timedelta

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from retune.suggestion import messages as katib
from tests.katib_simulator import collector
from tests.katib_simulator.admission import suggestion_config
from tests.katib_simulator.objects import Refused, now

CALL_SECONDS = 60
EXPERIMENT = "katib.kubeflow.org/experiment"
FINALIZER = "update-prometheus-metrics"
_OVER = ("Succeeded", "Failed", "Killed", "EarlyStopped", "MetricsUnavailable")
_CONDITIONS = {"Created": 0, "Running": 1, "Succeeded": 2, "Killed": 3, "Failed": 4, "EarlyStopped": 6}
_TYPES = {"double": 1, "int": 2, "discrete": 3, "categorical": 4}
_DISTRIBUTIONS = {"uniform": 1, "logUniform": 2, "normal": 3, "logNormal": 4}


def condition(thing, kind):
    """The condition of this type if it holds."""
    for found in thing.get("status", {}).get("conditions", []):
        if found["type"] == kind and found["status"] == "True":
            return found
    return None


def mark(thing, kind, reason="", message=""):
    """Set the latest condition; a running condition becomes false."""
    conditions = thing.setdefault("status", {}).setdefault("conditions", [])
    conditions[:] = [c for c in conditions if c["type"] != kind]
    if kind in (*_OVER, "Restarting"):
        for other in conditions:
            other["status"] = "False" if other["type"] in ("Running", *_OVER) else other["status"]
    conditions.append(
        {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now()}
    )


def over(thing):
    return next((kind for kind in _OVER if condition(thing, kind)), None)


class Controller:
    """All controllers. `step` reconciles every object once and returns whether anything is left to do."""

    def __init__(self, objects, pods, world):
        self.objects, self.pods, self.world = objects, pods, world
        self.services = {}  # (namespace, experiment) -> container
        self.errors = []  # (experiment, text): events of the type Warning
        self._random, self._seconds = random.Random(world.seed), 0
        objects.deleted.append(self._clean_up)

    def step(self):
        for experiment in self.objects.list("experiments"):
            self._guard(self._experiment, experiment)
        for suggestion in self.objects.list("suggestions"):
            self._guard(self._suggestion, suggestion)
        for trial in self.objects.list("trials"):
            self._guard(self._trial, trial)
        for plural in ("jobs", "trainjobs"):
            for job in self.objects.list(plural):
                if not job.get("status"):
                    job["status"] = {"active": 1}
                    self._guard(lambda thing, plural=plural: self._start(plural, thing), job)

    def _guard(self, reconcile, thing):
        """After a conflict or a missing object, the object is queued again; every error is an event."""
        try:
            reconcile(thing)
        except Refused:
            pass
        except Exception as error:
            self.errors.append((thing["metadata"]["name"], f"{type(error).__name__}: {error}"))

    def _start(self, plural, job):
        self.objects.replace(plural, job, status_only=True)
        self.pods.start(plural, job)

    def _clean_up(self, plural, gone):
        if plural == "suggestions":
            self._stop_service(gone)

    def _stop_service(self, suggestion):
        container = self.services.pop(
            (suggestion["metadata"]["namespace"], suggestion["metadata"]["name"]), None
        )
        if container is not None:
            self.world.give_back(container)

    # Experiments

    def _experiment(self, experiment):
        before = json.dumps(experiment.get("status"))
        if self._finalizers(experiment["metadata"]):
            # An update, which the webhook refuses if the algorithm is no longer registered
            self.objects.replace("experiments", experiment)
            return
        namespace, name = experiment["metadata"]["namespace"], experiment["metadata"]["name"]
        trials = self.objects.list("trials", namespace, f"{EXPERIMENT}={name}")
        done = condition(experiment, "Succeeded") or condition(experiment, "Failed")
        if done and not self._restarts(experiment, done):
            self._count(experiment, trials)
            suggestion = self.objects.find("suggestions", namespace, name)
            if suggestion and experiment["spec"]["resumePolicy"] != "LongRunning":
                self._stop_service(suggestion)
        elif not experiment.get("status"):
            mark(experiment, "Created", "ExperimentCreated", "Experiment is created")
            experiment["status"] |= {"startTime": now(), "completionTime": None}
        else:
            if trials:
                self._count(experiment, trials)
                self._judge(experiment, trials)
            if not (condition(experiment, "Succeeded") or condition(experiment, "Failed")):
                self._trials(experiment, trials)
        if json.dumps(experiment.get("status")) != before:
            self.objects.replace("experiments", experiment, status_only=True)

    def _finalizers(self, meta):
        """Add Katib's finalizer, or take it from what is being deleted; says whether that changed anything."""
        there, deleted = FINALIZER in meta.get("finalizers", []), "deletionTimestamp" in meta
        if there == deleted:
            kept = [name for name in meta.get("finalizers", []) if name != FINALIZER]
            meta["finalizers"] = kept if deleted else [*kept, FINALIZER]
        return there == deleted

    def _restarts(self, experiment, done):
        """An ended Experiment goes on if it ended by its count, may be resumed, and is allowed more trials now."""
        spec, status = experiment["spec"], experiment["status"]
        if (
            done["reason"] == "ExperimentMaxTrialsReached"
            and spec["resumePolicy"] != "Never"
            and spec["maxTrialCount"] > status["trials"]
        ):
            mark(experiment, "Restarting", "ExperimentRestarting", "Experiment is restarted")
            return True
        return False

    def _count(self, experiment, trials):
        status = experiment["status"]
        lists = {kind: [t["metadata"]["name"] for t in trials if over(t) == kind] for kind in _OVER}
        running = [t["metadata"]["name"] for t in trials if not over(t) and condition(t, "Running")]
        lists |= {"Running": running, "Pending": [t["metadata"]["name"] for t in trials if not over(t)]}
        lists["Pending"] = [name for name in lists["Pending"] if name not in running]
        status["trials"] = len(trials)
        for kind, names in lists.items():  # Go leaves out what is empty
            short = kind[:1].lower() + kind[1:]
            counter = "trialMetricsUnavailable" if kind == "MetricsUnavailable" else f"trials{kind}"
            for key, value in ((counter, len(names)), (f"{short}TrialList", names)):
                if value:
                    status[key] = value
                else:
                    status.pop(key, None)

    def _judge(self, experiment, trials):
        spec, status = experiment["spec"], experiment["status"]
        failed = status.get("trialsFailed", 0) + status.get("trialMetricsUnavailable", 0)
        done = failed + sum(
            status.get(f"trials{kind}", 0) for kind in ("Succeeded", "Killed", "EarlyStopped")
        )
        most = spec.get("maxFailedTrialCount")
        if most is not None and failed != 0 and failed >= most:
            mark(
                experiment,
                "Failed",
                "ExperimentFailed",
                "Experiment has failed because max failed count has reached",
            )
        elif spec.get("maxTrialCount") is not None and done >= spec["maxTrialCount"]:
            mark(
                experiment,
                "Succeeded",
                "ExperimentMaxTrialsReached",
                "Experiment has succeeded because max trial count has reached",
            )
        else:
            if not condition(experiment, "Running"):
                mark(experiment, "Running", "ExperimentRunning", "Experiment is running")
            return
        status["completionTime"] = now()

    def _trials(self, experiment, trials):
        """Request as many suggestions as trials are missing, and create trials from those that have arrived."""
        spec, status = experiment["spec"], experiment["status"]
        active = status.get("trialsRunning", 0) + status.get("trialsPending", 0)
        done = sum(
            status.get(key, 0)
            for key in ("trialsSucceeded", "trialsFailed", "trialsKilled", "trialsEarlyStopped")
        )
        wanted = min(spec.get("maxTrialCount", math.inf) - done, spec["parallelTrialCount"])
        add = wanted - active  # MetricsUnavailable trials are in neither count
        if add <= 0:
            return
        unfinished = sum(over(t) == "EarlyStopped" and not t["status"].get("observation") for t in trials)
        namespace, name = experiment["metadata"]["namespace"], experiment["metadata"]["name"]
        requests = len(trials) + add - unfinished
        suggestion = self.objects.find("suggestions", namespace, name)
        if suggestion is None:
            owner = _owner(experiment, "Experiment")
            made = {
                "metadata": {"name": name, "ownerReferences": [owner]},
                "spec": {**_of(spec, "algorithm", "earlyStopping", "resumePolicy"), "requests": requests},
            }
            self.objects.create("suggestions", namespace, made)
            return
        if condition(suggestion, "Failed"):
            mark(experiment, "Failed", "ExperimentFailed", "Suggestion has failed")
            experiment["status"]["completionTime"] = now()
            return
        there = {trial["metadata"]["name"] for trial in trials}
        for assignment in suggestion.get("status", {}).get("suggestions", []):
            if assignment["name"] not in there:
                self._create_trial(experiment, assignment)
        if suggestion["spec"]["requests"] != requests:
            suggestion["spec"]["requests"] = requests
            self.objects.replace("suggestions", suggestion)

    def _create_trial(self, experiment, assignment):
        spec, meta = experiment["spec"], experiment["metadata"]
        template = spec["trialTemplate"]
        job = _applied(template, assignment["name"], meta["namespace"], assignment["parameterAssignments"])
        made = {
            "metadata": {
                "name": assignment["name"],
                "labels": {EXPERIMENT: meta["name"]},
                "ownerReferences": [_owner(experiment, "Experiment")],
            },
            "spec": {
                **_of(spec, "objective"),
                "parameterAssignments": assignment["parameterAssignments"],
                **({"earlyStoppingRules": rules} if (rules := assignment.get("earlyStoppingRules")) else {}),
                "runSpec": job,
                "metricsCollector": spec["metricsCollectorSpec"],
                **({"retainRun": True} if template.get("retain") else {}),
                **_of(
                    template,
                    "primaryContainerName",
                    "primaryPodLabels",
                    "successCondition",
                    "failureCondition",
                ),
            },
        }
        job["metadata"] = {
            **job.get("metadata", {}),
            "name": assignment["name"],
            "namespace": meta["namespace"],
        }
        self.objects.create("trials", meta["namespace"], made)

    # Suggestions

    def _suggestion(self, suggestion):
        namespace, name = suggestion["metadata"]["namespace"], suggestion["metadata"]["name"]
        if condition(suggestion, "Failed"):
            return
        experiment = self.objects.get("experiments", namespace, name)
        status = suggestion.setdefault("status", {})
        needed = suggestion["spec"]["requests"] - status.get("suggestionCount", 0)
        if needed <= 0:
            return
        container = self._container(experiment)
        if not container.alive or not _healthy(container.address):
            self.errors.append((name, "Deployment is not ready"))
            self.world.restart(self.services, (namespace, name))
            return
        if "validated" not in status:
            problem = self._validate(container.address, experiment)
            if problem:
                mark(
                    suggestion,
                    "Failed",
                    "SuggestionFailed",
                    f"Validation failed: ValidateAlgorithmSettings Error: {problem}",
                )
                self.objects.replace("suggestions", suggestion, status_only=True)
                return
            status["validated"] = True
        # All trials with the label of this name, in any namespace: upstream forgets to ask for one (#2578).
        trials = self.objects.list("trials", None, f"{EXPERIMENT}={name}")
        self._random.shuffle(trials)
        filled = self._message(experiment, status.get("algorithmSettings", []))
        request = katib.GetSuggestionsRequest(
            experiment=filled,
            trials=[found for t in trials if (found := _trial_message(t)) is not None],
            current_request_number=needed,
            total_request_number=suggestion["spec"]["requests"],
        )
        self.world.before_call(self.services, (namespace, name))
        reply = self._call(container.address, "GetSuggestions", request)
        if len(reply.parameter_assignments) != needed:
            raise RuntimeError("The response contains unexpected trials")
        rules = self._rules(experiment, [t for t in trials if t["metadata"]["namespace"] == namespace])
        for entry in reply.parameter_assignments:
            status.setdefault("suggestions", []).append(
                {
                    "name": entry.trial_name or f"{name}-{self.objects.suffix(8)}",
                    "parameterAssignments": [
                        {"name": pair.name, "value": pair.value} for pair in entry.assignments
                    ],
                    "earlyStoppingRules": rules,
                }
            )
        status["suggestionCount"] = len(status["suggestions"])
        merged = {entry["name"]: entry["value"] for entry in status.get("algorithmSettings", [])}
        merged |= {entry.name: entry.value for entry in reply.algorithm.algorithm_settings}
        status["algorithmSettings"] = [{"name": key, "value": value} for key, value in merged.items()]
        if self.world.loses_reply():  # the status update conflicts: the reply is dropped and asked for again
            self.errors.append((name, "Update suggestion instance status failed, reconciler requeued"))
            return
        self.objects.replace("suggestions", suggestion, status_only=True)

    def _container(self, experiment):
        key = experiment["metadata"]["namespace"], experiment["metadata"]["name"]
        if key not in self.services:
            entry = suggestion_config(self.objects, experiment["spec"]["algorithm"]["algorithmName"])
            self.services[key] = self.world.container(entry)
        return self.services[key]

    def _validate(self, address, experiment):
        """The message if the settings are refused; only two codes count, all others mean "validated" (trap 12)."""
        request = katib.ValidateAlgorithmSettingsRequest(experiment=self._message(experiment, []))
        try:
            self._call(address, "ValidateAlgorithmSettings", request)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN):
                return error.details()
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                raise
        return None

    def _call(self, address, method, request):
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_unary(
                f"/api.v1.beta1.Suggestion/{method}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=getattr(katib, f"{method}Reply").FromString,
            )
            self.world.calls += 1
            return call(request, timeout=CALL_SECONDS)

    def _message(self, experiment, overlay):
        spec = experiment["spec"]
        found = katib.Experiment(name=experiment["metadata"]["name"])
        for parameter in spec["parameters"]:
            entry = found.spec.parameter_specs.parameters.add(
                name=parameter["name"], parameter_type=_TYPES[parameter["parameterType"]]
            )
            feasible = parameter["feasibleSpace"]
            entry.feasible_space.distribution = _DISTRIBUTIONS[feasible["distribution"]]
            entry.feasible_space.list.extend(feasible.get("list", []))
            for key in ("min", "max", "step"):
                setattr(entry.feasible_space, key, feasible.get(key, ""))
        _objective_message(found.spec.objective, spec["objective"])
        settings = {
            entry["name"]: entry["value"]
            for entry in (*spec["algorithm"].get("algorithmSettings", []), *overlay)
        }
        found.spec.algorithm.algorithm_name = spec["algorithm"]["algorithmName"]
        for key, value in settings.items():
            found.spec.algorithm.algorithm_settings.add(name=key, value=value)
        found.spec.parallel_trial_count = spec["parallelTrialCount"]
        found.spec.max_trial_count = spec.get("maxTrialCount", 0)
        return found

    def _rules(self, experiment, trials):
        """medianstop: the mean, over the succeeded trials, of the mean of their first values."""
        stop = experiment["spec"].get("earlyStopping")
        if not stop:
            return []
        settings = {entry["name"]: int(entry["value"]) for entry in stop.get("algorithmSettings", [])}
        steps, metric = settings.get("start_step", 4), experiment["spec"]["objective"]["objectiveMetricName"]
        done = [
            self.objects.reported.get((t["metadata"]["namespace"], t["metadata"]["name"]), [])
            for t in trials
            if over(t) == "Succeeded"
        ]
        means = [
            sum(v) / len(v)
            for rows in done
            if (v := [float(text) for _, name, text in rows if name == metric][:steps])
        ]
        if len(means) < settings.get("min_trials_required", 3):
            return []
        comparison = "greater" if experiment["spec"]["objective"]["type"] == "minimize" else "less"
        return [
            {
                "name": metric,
                "value": repr(sum(means) / len(means)),
                "comparison": comparison,
                "startStep": steps,
            }
        ]

    # Trials

    def _trial(self, trial):
        before, meta = json.dumps(trial.get("status")), trial["metadata"]
        plural = "jobs" if trial["spec"]["runSpec"]["kind"] == "Job" else "trainjobs"
        key = meta["namespace"], meta["name"]
        job = self.objects.find(plural, *key)
        if not trial.get("status"):
            mark(trial, "Created", "TrialCreated", "Trial is created")
            trial["status"] |= {"startTime": self._clock(), "completionTime": None}
        elif job is None and not over(trial):
            made = json.loads(json.dumps(trial["spec"]["runSpec"]))
            made["metadata"] = {
                **made.get("metadata", {}),
                "name": meta["name"],
                "ownerReferences": [_owner(trial, "Trial")],
            }
            self.objects.create(plural, meta["namespace"], made)
            mark(trial, "Running", "TrialRunning", "Trial is running")
        elif not over(trial) or (over(trial) == "EarlyStopped" and not trial["status"].get("observation")):
            self._follow(trial, job, key)
        if json.dumps(trial.get("status")) != before:
            self.objects.replace("trials", trial, status_only=True)

    def _clock(self):
        """The time, one second later each time: times have no fractions, and our trials take milliseconds."""
        self._seconds += 1
        return (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._seconds)).strftime(
            "%Y-%m-%dT%H:%M:%SZ"
        )

    def _follow(self, trial, job, key):
        ended = {
            c["type"] for c in (job or {}).get("status", {}).get("conditions", []) if c["status"] == "True"
        }
        strategies = trial["spec"]["objective"]["metricStrategies"]
        if key in self.objects.stopped_early and not over(trial):
            mark(trial, "EarlyStopped", "TrialEarlyStopped", "Trial is early stopped")
        if ("Complete" in ended or over(trial) == "EarlyStopped") and key in self.objects.reported:
            trial["status"]["observation"] = collector.observation(self.objects.reported[key], strategies)
        if over(trial) == "EarlyStopped":
            trial["status"]["completionTime"] = self._clock()
        elif "Failed" in ended:
            mark(trial, "Failed", *_with_jobs("TrialFailed", "Trial has failed", job))
            trial["status"]["completionTime"] = self._clock()
        elif "Complete" in ended and "observation" in trial["status"]:
            if collector.available(trial["status"]["observation"], strategies):
                mark(trial, "Succeeded", *_with_jobs("TrialSucceeded", "Trial has succeeded", job))
            else:
                mark(
                    trial,
                    "MetricsUnavailable",
                    *_with_jobs("MetricsUnavailable", "Metrics are not available", job),
                )
            trial["status"]["completionTime"] = self._clock()


def _with_jobs(reason, message, job):
    """Reason and message of a trial, with those of its Job after them."""
    done = next((c for c in job["status"]["conditions"] if c["type"] in ("Complete", "Failed")), {})
    reason += f". Job reason: {done['reason']}" if done.get("reason") else ""
    message += f". Job message: {done['message']}" if done.get("message") else ""
    return reason, message


def _owner(thing, kind):
    meta = thing["metadata"]
    return {"apiVersion": "kubeflow.org/v1beta1", "kind": kind, "name": meta["name"], "uid": meta["uid"]}


def _of(source, *keys):
    return {key: source[key] for key in keys if key in source}


def _healthy(address):
    try:
        with grpc.insecure_channel(address) as channel:
            check = health_pb2.HealthCheckRequest(service=katib.HEALTH_SERVICE)
            # A kubelet waits 1 s; here the machine may be busy with other tests.
            reply = health_pb2_grpc.HealthStub(channel).Check(check, timeout=20)
            return reply.status == health_pb2.HealthCheckResponse.SERVING
    except grpc.RpcError:
        return False


def _applied(template, name, namespace, assignments):
    """The trial's Job: values are put into the JSON text as they are."""
    text, given = json.dumps(template["trialSpec"]), {pair["name"]: pair["value"] for pair in assignments}
    meta = {"${trialSpec.Name}": name, "${trialSpec.Namespace}": namespace}
    used = 0
    for parameter in template["trialParameters"]:
        if parameter["reference"] in meta:
            value = meta[parameter["reference"]]
        else:
            value, used = given[parameter["reference"]], used + 1
        text = text.replace(f"${{trialParameters.{parameter['name']}}}", value)
    if used != len(assignments):
        raise RuntimeError(f"parameter assignments: {assignments}, non-meta trial parameter count: {used}")
    return json.loads(text)


def _objective_message(message, objective):
    message.type = katib.MINIMIZE if objective["type"] == "minimize" else katib.MAXIMIZE
    message.objective_metric_name = objective["objectiveMetricName"]
    message.additional_metric_names.extend(objective.get("additionalMetricNames", []))


def _trial_message(trial):
    """A trial as Katib sends it; None for those it does not send (references: katib.md §1.6)."""
    how, status = over(trial), trial.get("status", {})
    observation = status.get("observation")
    if how == "MetricsUnavailable" or (how == "EarlyStopped" and not observation):
        return None
    found = katib.Trial(name=trial["metadata"]["name"])
    _objective_message(found.spec.objective, trial["spec"]["objective"])
    for pair in trial["spec"]["parameterAssignments"]:
        found.spec.parameter_assignments.assignments.add(name=pair["name"], value=pair["value"])
    found.status.start_time = status.get("startTime") or ""
    found.status.completion_time = status.get("completionTime") or ""
    latest = status.get("conditions", [{"type": "Created"}])[-1]["type"]
    found.status.condition = _CONDITIONS.get(latest, 7)
    strategies = {s["name"]: s["value"] for s in trial["spec"]["objective"]["metricStrategies"]}
    for metric in observation["metrics"] if observation and how in ("Succeeded", "EarlyStopped") else []:
        if metric["name"] in strategies:
            found.status.observation.metrics.add(
                name=metric["name"], value=collector.chosen(metric, strategies[metric["name"]])
            )
    return found
