"""The same requests to any cluster with Katib 0.19, and its answers: real Katib and the simulator must give the same.

`admissions` asks for Experiments that are refused, and for ones whose defaults are filled in. `conversation` runs one
Experiment whose suggestion service is `RECORDER`: each trial ends in another way, and the service records its requests.
Names, times and identities are the cluster's own; `alike` puts one word in place of each.
"""

import copy
import json
import re

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from tests.conftest import wait_for

# Messages that end with a whole object, as Go prints it
_DUMPED = re.compile(
    r"((?:can't be duplicated in|does not exist in|not found in) spec\.[\w.]+: |converted template: ).*", re.S
)
GROUP, VERSION = "kubeflow.org", "v1beta1"
ALGORITHM = "recorder"

# What the suggestion service runs: it proposes one case after another, and prints each request as a line of JSON.
RECORDER = """
import json, os, time
from concurrent.futures import ThreadPoolExecutor
import grpc
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from retune.suggestion import messages as katib

def note(method, request):
    print(json.dumps([method, MessageToDict(request)]), flush=True)

def validate(request, context):
    note("ValidateAlgorithmSettings", request)
    return katib.ValidateAlgorithmSettingsReply()

def suggest(request, context):
    note("GetSuggestions", request)
    cases = list(request.experiment.spec.parameter_specs.parameters[0].feasible_space.list)
    reply = katib.GetSuggestionsReply()
    for offset in range(request.current_request_number):
        number = request.total_request_number - request.current_request_number + offset
        entry = reply.parameter_assignments.add()
        entry.assignments.add(name="case", value=cases[number % len(cases)])
        entry.assignments.add(name="rate", value="0.5")
    reply.algorithm.algorithm_settings.add(name="asked", value=str(request.total_request_number))
    return reply

server = grpc.server(ThreadPoolExecutor(2))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(katib.SERVICE, {
    "GetSuggestions": grpc.unary_unary_rpc_method_handler(
        suggest, katib.GetSuggestionsRequest.FromString, lambda reply: reply.SerializeToString()),
    "ValidateAlgorithmSettings": grpc.unary_unary_rpc_method_handler(
        validate, katib.ValidateAlgorithmSettingsRequest.FromString, lambda reply: reply.SerializeToString()),
}),))
checks = health.HealthServicer()
checks.set(katib.HEALTH_SERVICE, health_pb2.HealthCheckResponse.SERVING)
health_pb2_grpc.add_HealthServicer_to_server(checks, server)
port = server.add_insecure_port("0.0.0.0:" + os.environ.get("PORT", "6789"))
print(json.dumps(["serving", port]), flush=True)
server.start()
server.wait_for_termination()
"""

# What a trial does in each case. It comes as an environment variable: Katib joins the words of a command with spaces.
CASES = {
    "plain": "echo loss=0.5; echo loss=0.25; echo size=3",
    "times": "echo 2026-01-02T00:00:00Z loss=0.7; echo 2026-01-01T00:00:00Z loss=0.9",
    "words": "echo 'the loss = 1e-3, the size=+2.5E1, lossy=7 and loss=.5'; echo loss: 9",
    "environment": "env | grep KATIB_ | sort; echo loss=1",
    "errors": "echo loss=2 >&2",
    "silent": "echo nothing was measured",
    "nan": "echo loss=nan",
    "infinite": "echo loss=inf; echo loss=4",
    "failing": "echo loss=0.1; exit 3",
}
# Katib's collector fails a pod whose main process has ended before the collector starts: it no longer finds it.
SCRIPT = "sleep ${{PAUSE:-3}}; case $CASE in {} esac".format(
    " ".join(f"{name}) {what} ;;" for name, what in CASES.items())
)


def experiment(image, name="talk"):
    """An Experiment of one trial at a time, a case each."""
    container = {
        "name": "main",
        "image": image,
        "command": ["sh", "-c", 'eval "$SCRIPT"'],
        "env": [
            {"name": "CASE", "value": "${trialParameters.case}"},
            {"name": "RATE", "value": "${trialParameters.rate}"},
            {"name": "SCRIPT", "value": SCRIPT},
        ],
    }
    pod = {"restartPolicy": "Never", "containers": [container]}
    template = {
        "metadata": {"labels": {"retune.dev/talk": "trial", "sidecar.istio.io/inject": "false"}},
        "spec": pod,
    }
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "Experiment",
        "metadata": {"name": name},
        "spec": {
            "objective": {"type": "minimize", "objectiveMetricName": "loss", "additionalMetricNames": ["size"]},
            "algorithm": {
                "algorithmName": ALGORITHM,
                "algorithmSettings": [{"name": "seed", "value": "7"}],
            },
            "resumePolicy": "LongRunning",  # so that the service can still be asked what it was asked
            "parallelTrialCount": 1,
            "maxTrialCount": len(CASES),
            "maxFailedTrialCount": len(CASES),
            "parameters": [
                {"name": "case", "parameterType": "categorical", "feasibleSpace": {"list": list(CASES)}},
                {"name": "rate", "parameterType": "double", "feasibleSpace": {"min": "0.1", "max": "0.9", "distribution": "logUniform"}},
            ],
            "trialTemplate": {
                "retain": True,
                "primaryContainerName": "main",
                "trialParameters": [{"name": "case", "reference": "case"}, {"name": "rate", "reference": "rate"}],
                "trialSpec": {
                    "apiVersion": "batch/v1",
                    "kind": "Job",
                    "metadata": {"labels": {"retune.dev/talk": "job"}},
                    "spec": {"backoffLimit": 0, "template": template},
                },
            },
        },
    }  # fmt: skip


def _put(**changes):
    """Return a function that changes an Experiment: `a__b=value` sets `spec.a.b`, None takes it away."""

    def change(found):
        for path, value in changes.items():
            *parents, last = path.split("__")
            place = found["spec"]
            for key in parents:
                place = place[int(key) if key.isdigit() else key]
            last = int(last) if last.isdigit() else last
            if value is None:
                del place[last]
            else:
                place[last] = value

    return change


def _name(text):
    return lambda found: found["metadata"].update(name=text)


_DOUBLE = {"name": "rate", "parameterType": "double"}
WISHES = {
    # refused
    "a name that begins with a digit": _name("7talks"),
    "a long name": _name("t" * 41),
    "no trials": _put(maxTrialCount=0),
    "no trial at once": _put(parallelTrialCount=0),
    "fewer failures than none": _put(maxFailedTrialCount=-1),
    "more at once than in all": _put(parallelTrialCount=100),
    "more failures than trials": _put(maxFailedTrialCount=100),
    "two problems": _put(maxTrialCount=0, parallelTrialCount=0),
    "no objective": _put(objective=None),
    "a goal that is none": _put(objective__type="improve"),
    "no metric": _put(objective__objectiveMetricName=""),
    "the objective twice": _put(objective__additionalMetricNames=["loss"]),
    "an algorithm that nobody registered": _put(algorithm__algorithmName="oracle"),
    "no algorithm": _put(algorithm=None),
    "a setting that is a number": _put(algorithm__algorithmSettings=[{"name": "seed", "value": 7}]),
    "an unknown policy": _put(resumePolicy="Perhaps"),
    "no parameters": _put(parameters=[]),
    "bounds that are numbers": _put(parameters__1__feasibleSpace={"min": 0.1, "max": 0.9}),
    "a list of doubles": _put(parameters__1__feasibleSpace={"list": ["0.1", "0.9"]}),
    "no upper bound": _put(parameters__1__feasibleSpace={"min": "0.1"}),
    "bounds of categories": _put(parameters__0__feasibleSpace={"min": "1", "max": "2"}),
    "an unknown type": _put(parameters__1__parameterType="real"),
    "an unknown distribution": _put(parameters__1__feasibleSpace__distribution="flat"),
    "no template": _put(trialTemplate=None),
    "no main container": _put(trialTemplate__primaryContainerName=None),
    "no trial parameters": _put(trialTemplate__trialParameters=None),
    "no trial": _put(trialTemplate__trialSpec=None),
    "a parameter twice": _put(trialTemplate__trialParameters=[{"name": n, "reference": "case"} for n in ("case", "rate")]),
    "a reference to nothing": _put(trialTemplate__trialParameters__1__reference="speed"),
    "a placeholder without a parameter": _put(trialTemplate__trialParameters=[{"name": "case", "reference": "case"}]),
    "a parameter without a placeholder": _put(trialTemplate__trialSpec__spec__template__spec__containers__0__env__1__value="0.5"),
    "a trial with a name": _put(trialTemplate__trialSpec__metadata__name="mine"),
    "an unknown field in the trial": _put(trialTemplate__trialSpec__spec__template__spec__containers__0__comand=["sh"]),
    "an unknown collector": _put(metricsCollectorSpec={"collector": {"kind": "Paper"}}),
    "early stopping that nobody registered": _put(earlyStopping={"algorithmName": "patience"}),
    # taken
    "as it is": lambda found: None,
    "defaults": _put(parallelTrialCount=None, parameters__1__feasibleSpace={"min": "0.1", "max": "0.9"}),
    "an empty list": _put(parameters__0__feasibleSpace={"list": []}),
    "bounds in the wrong order": _put(parameters__1__feasibleSpace={"min": "0.9", "max": "0.1"}),
    "strategies": _put(objective__metricStrategies=[{"name": "size", "value": "latest"}]),
    "to maximize": _put(objective__type="maximize"),
}  # fmt: skip

EDITS = [
    {"maxTrialCount": 50}, {"maxTrialCount": 2}, {"resumePolicy": "Never"}, {"parallelTrialCount": 0}, {"parallelTrialCount": 2},
]  # fmt: skip


class Side:
    """A cluster that the script talks to, by a kubeconfig."""

    def __init__(self, connection, namespace):
        self.namespace = namespace
        self._custom, self._batch = client.CustomObjectsApi(connection), client.BatchV1Api(connection)

    def create(self, content, **more):
        """Return (201, the object) or (code, the refusal's message)."""
        try:
            return 201, self._custom.create_namespaced_custom_object(
                GROUP, VERSION, self.namespace, "experiments", content, **more
            )
        except ApiException as error:
            return error.status, json.loads(error.body)["message"]

    def change(self, name, spec):
        """Return the answer to a change: (200, "") or (code, message)."""
        try:
            self._custom.patch_namespaced_custom_object(
                GROUP, VERSION, self.namespace, "experiments", name, {"spec": spec}, dry_run="All"
            )
            return 200, ""
        except ApiException as error:
            return error.status, json.loads(error.body)["message"]

    def get(self, plural, name):
        return self._custom.get_namespaced_custom_object(GROUP, VERSION, self.namespace, plural, name)

    def trials(self, experiment):
        found = self._custom.list_namespaced_custom_object(
            GROUP,
            VERSION,
            self.namespace,
            "trials",
            label_selector=f"katib.kubeflow.org/experiment={experiment}",
        )
        return found["items"]

    def job(self, name):
        found = self._batch.read_namespaced_job(name, self.namespace)
        return client.ApiClient().sanitize_for_serialization(found)

    def delete(self, name):
        self._custom.delete_namespaced_custom_object(GROUP, VERSION, self.namespace, "experiments", name)


def admissions(side, image):
    """Return the answer to each Experiment: the code, and the message or the spec with its defaults."""
    answers = {}
    for wish, change in WISHES.items():
        wanted = experiment(image)
        change(wanted)
        code, reply = side.create(copy.deepcopy(wanted), dry_run="All")
        answers[wish] = code, reply["spec"] if code == 201 else _DUMPED.sub(r"\1", reply)
    return answers


def conversation(side, image, pod_log, pod, requests, seconds=600):
    """Run the Experiment to its end and return all that can be known of it.

    Args:
        side: where. image: of its pods.
        pod_log, pod: functions of a trial's name: what its collector printed, and its labels and command.
        requests: a function that returns what `RECORDER` printed.

    """
    code, made = side.create(experiment(image))
    assert code == 201, made
    name = made["metadata"]["name"]
    try:
        ended = wait_for(lambda: _ended(side.get("experiments", name)), seconds, "the Experiment did not end")
        trials = {_case(trial): trial for trial in side.trials(name)}
        found = {
            "experiment": _plain(ended["status"]),
            "edits": [side.change(name, change) for change in EDITS],
            "suggestion": _suggestion(side.get("suggestions", name)),
            "trials": {case: _trial(trial) for case, trial in sorted(trials.items())},
            "jobs": {
                case: _job(side.job(trial["metadata"]["name"])) for case, trial in sorted(trials.items())
            },
            "pods": {case: pod(trial["metadata"]["name"]) for case, trial in sorted(trials.items())},
            "environment": re.findall(r"KATIB_\w+=\S+", pod_log(trials["environment"]["metadata"]["name"])),
            "requests": [json.loads(line) for line in requests().splitlines() if line.startswith('["')],
        }
        found["requests"] = [_request(*entry) for entry in found["requests"] if entry[0] != "serving"]
        names = {trial["metadata"]["name"]: f"trial-{case}" for case, trial in trials.items()}
        found = json.loads(alike(json.dumps(found), {**names, side.namespace: "namespace"}))
        for key, value in found["experiment"].items():
            if key.endswith("List"):
                value.sort()
        return found
    finally:
        side.delete(name)


def alike(text, names):
    """Replace what differs between clusters (names, times, identities) by fixed words."""
    for name, word in names.items():
        text = text.replace(name, word)
    return re.sub(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "uid", text)


def _ended(found):
    conditions = found.get("status", {}).get("conditions", [])
    return (
        found if {c["type"] for c in conditions if c["status"] == "True"} & {"Succeeded", "Failed"} else None
    )


def _case(trial):
    return next(p["value"] for p in trial["spec"]["parameterAssignments"] if p["name"] == "case")


def _plain(status):
    """A status without its times, and without the optimal trial: with a NaN among them, Katib's depends on the order of its cache."""
    kept = {
        key: value
        for key, value in status.items()
        if not key.endswith("Time") and key != "currentOptimalTrial"
    }
    kept["conditions"] = _conditions(status)
    return kept


def _conditions(status):
    return [
        {key: c.get(key) for key in ("type", "status", "reason", "message")}
        for c in status.get("conditions", [])
    ]


def _metrics(observation):
    return sorted((observation or {}).get("metrics", []), key=lambda metric: metric["name"])


def _suggestion(found):
    status = found["status"]
    return {
        "spec": found["spec"],
        "suggestions": [entry["parameterAssignments"] for entry in status["suggestions"]],
        "suggestionCount": status["suggestionCount"],
        "algorithmSettings": status["algorithmSettings"],
        "failed": [c for c in _conditions(status) if c["type"] == "Failed"],
    }


def _trial(found):
    spec = {key: value for key, value in found["spec"].items() if key != "runSpec"}
    return {
        "labels": found["metadata"].get("labels"),
        "spec": spec,
        "run": {
            k: v
            for k, v in found["spec"]["runSpec"]["metadata"].items()
            if k in ("labels", "name", "namespace")
        },
        "conditions": _conditions(found["status"]),
        "metrics": _metrics(found["status"].get("observation")),
    }


def _job(found):
    meta = found["metadata"]
    return {
        "labels": meta.get("labels"),
        "owners": [(owner["kind"], owner["apiVersion"], owner["name"]) for owner in meta["ownerReferences"]],
        "ended": [
            c["type"] for c in found["status"].get("conditions", []) if c["type"] in ("Complete", "Failed")
        ],
    }


def _request(method, request):
    """A request with its trials in order and without times."""
    for trial in request.get("trials", []):
        status = trial["status"]
        for key in ("startTime", "completionTime"):
            status[key] = bool(status.get(key))
        if "observation" in status:
            status["observation"] = _metrics(status["observation"])
    request["trials"] = sorted(
        request.get("trials", []),
        key=lambda trial: trial["spec"]["parameterAssignments"]["assignments"][0]["value"],
    )
    return method, request
