"""Katib's suggestion messages, in a proto package of our own.

Messages carry field numbers and not names, so these classes are compatible with any Katib 0.19 client. Katib's own
generated code cannot be loaded beside another copy of it (protobuf's descriptor pool refuses the second one) and pins
an old protobuf; so the messages have another package here, and are built from a table instead of by protoc.
Source: kubeflow/katib v0.19.0, pkg/apis/manager/v1beta1/api.proto.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "retune.katib.v1beta1"
SERVICE = "api.v1.beta1.Suggestion"
HEALTH_SERVICE = "manager.v1beta1.Suggestion"

# message -> fields: (number, name, type); "*" before a type means repeated. Enums are int32 on the wire.
# A map is encoded as repeated key and value: `LabelsEntry`.
_MESSAGES: dict[str, list[tuple[int, str, str]]] = {
    "GetSuggestionsRequest": [
        (1, "experiment", "Experiment"),
        (2, "trials", "*Trial"),
        (4, "current_request_number", "int32"),
        (5, "total_request_number", "int32"),
    ],
    "GetSuggestionsReply": [
        (1, "parameter_assignments", "*ParameterAssignments"),
        (2, "algorithm", "AlgorithmSpec"),
    ],
    "ValidateAlgorithmSettingsRequest": [(1, "experiment", "Experiment")],
    "ValidateAlgorithmSettingsReply": [],
    "Experiment": [(1, "name", "string"), (2, "spec", "ExperimentSpec")],
    "ExperimentSpec": [
        (1, "parameter_specs", "ParameterSpecs"),
        (2, "objective", "ObjectiveSpec"),
        (3, "algorithm", "AlgorithmSpec"),
        (5, "parallel_trial_count", "int32"),
        (6, "max_trial_count", "int32"),
        (7, "nas_config", "NasConfig"),
    ],
    "NasConfig": [],
    "ParameterSpecs": [(1, "parameters", "*ParameterSpec")],
    "ParameterSpec": [
        (1, "name", "string"),
        (2, "parameter_type", "int32"),
        (3, "feasible_space", "FeasibleSpace"),
    ],
    "FeasibleSpace": [
        (1, "max", "string"),
        (2, "min", "string"),
        (3, "list", "*string"),
        (4, "step", "string"),
        (5, "distribution", "int32"),
    ],
    "ObjectiveSpec": [
        (1, "type", "int32"),
        (2, "goal", "double"),
        (3, "objective_metric_name", "string"),
        (4, "additional_metric_names", "*string"),
    ],
    "AlgorithmSpec": [(1, "algorithm_name", "string"), (2, "algorithm_settings", "*AlgorithmSetting")],
    "AlgorithmSetting": [(1, "name", "string"), (2, "value", "string")],
    "Trial": [(1, "name", "string"), (2, "spec", "TrialSpec"), (3, "status", "TrialStatus")],
    "TrialSpec": [
        (2, "objective", "ObjectiveSpec"),
        (3, "parameter_assignments", "TrialAssignments"),
        (4, "labels", "*LabelsEntry"),
    ],
    "TrialAssignments": [(1, "assignments", "*ParameterAssignment")],
    "ParameterAssignment": [(1, "name", "string"), (2, "value", "string")],
    "ParameterAssignments": [
        (1, "assignments", "*ParameterAssignment"),
        (2, "trial_name", "string"),
    ],
    "LabelsEntry": [(1, "key", "string"), (2, "value", "string")],
    "TrialStatus": [
        (1, "start_time", "string"),
        (2, "completion_time", "string"),
        (3, "condition", "int32"),
        (4, "observation", "Observation"),
    ],
    "Observation": [(1, "metrics", "*Metric")],
    "Metric": [(1, "name", "string"), (2, "value", "string")],
}

# ParameterType, Distribution, ObjectiveType and TrialConditionType of api.proto.
DOUBLE, INT, DISCRETE, CATEGORICAL = 1, 2, 3, 4
UNIFORM, LOG_UNIFORM, NORMAL, LOG_NORMAL = 1, 2, 3, 4
MINIMIZE, MAXIMIZE = 1, 2
CREATED, RUNNING, SUCCEEDED, KILLED, FAILED, METRICS_UNAVAILABLE, EARLY_STOPPED = 0, 1, 2, 3, 4, 5, 6

# FieldDescriptorProto.Type and FieldDescriptorProto.Label of protobuf's descriptor.proto
_SCALARS = {"string": 9, "double": 1, "int32": 5}
_MESSAGE = 11
_OPTIONAL, _REPEATED = 1, 3


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="retune/katib/v1beta1/suggestion.proto", package=PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field, kind in fields:
            entry = message.field.add(
                name=field, number=number, label=_REPEATED if kind.startswith("*") else _OPTIONAL
            )
            kind = kind.removeprefix("*")
            if kind in _SCALARS:
                entry.type = _SCALARS[kind]
            else:
                entry.type, entry.type_name = _MESSAGE, f".{PACKAGE}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for name in _MESSAGES
    }


_CLASSES = _classes()

GetSuggestionsRequest: Any = _CLASSES["GetSuggestionsRequest"]
GetSuggestionsReply: Any = _CLASSES["GetSuggestionsReply"]
ValidateAlgorithmSettingsRequest: Any = _CLASSES["ValidateAlgorithmSettingsRequest"]
ValidateAlgorithmSettingsReply: Any = _CLASSES["ValidateAlgorithmSettingsReply"]
Experiment: Any = _CLASSES["Experiment"]
ParameterSpec: Any = _CLASSES["ParameterSpec"]
Trial: Any = _CLASSES["Trial"]
