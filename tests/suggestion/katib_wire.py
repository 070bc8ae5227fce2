"""Writes katib_wire.json: a request and a reply in the bytes of Katib's own generated code.

    pip install --no-deps kubeflow-katib==0.19.0 && pip install 'protobuf<5' grpcio     (in an environment of its own)
    python tests/suggestion/katib_wire.py

Katib's code cannot be installed beside ours (it pins protobuf<5), so its bytes are kept.
"""

import importlib.util
import json
import sys
from pathlib import Path


def load():
    """Katib's module alone; its package would load a whole SDK."""
    for folder in sys.path:
        file = Path(folder, "kubeflow/katib/katib_api_pb2.py")
        if file.exists():
            spec = importlib.util.spec_from_file_location("katib_api_pb2", file)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise SystemExit("kubeflow-katib is not installed here")


def request(api):
    """A request in which all fields have different values."""
    experiment = api.Experiment(
        name="study",
        spec=api.ExperimentSpec(
            parameter_specs=api.ExperimentSpec.ParameterSpecs(
                parameters=[
                    api.ParameterSpec(
                        name="learning_rate", parameter_type=api.DOUBLE,
                        feasible_space=api.FeasibleSpace(min="1e-06", max="0.001", step="1e-06", distribution=api.LOG_UNIFORM),
                    ),
                    api.ParameterSpec(
                        name="alpha", parameter_type=api.INT,
                        feasible_space=api.FeasibleSpace(min="1", max="64", distribution=api.NORMAL),
                    ),
                    api.ParameterSpec(
                        name="rank", parameter_type=api.DISCRETE,
                        feasible_space=api.FeasibleSpace(list=["4", "8"], distribution=api.UNIFORM),
                    ),
                    api.ParameterSpec(
                        name="schedule", parameter_type=api.CATEGORICAL,
                        feasible_space=api.FeasibleSpace(list=["linear", "cosine"], distribution=api.LOG_NORMAL),
                    ),
                ]
            ),
            objective=api.ObjectiveSpec(
                type=api.MAXIMIZE, goal=0.99, objective_metric_name="accuracy", additional_metric_names=["loss", "memory"]
            ),
            algorithm=api.AlgorithmSpec(
                algorithm_name="nomad", algorithm_settings=[api.AlgorithmSetting(name="seed", value="7")]
            ),
            early_stopping=api.EarlyStoppingSpec(algorithm_name="medianstop"),
            parallel_trial_count=3,
            max_trial_count=50,
        ),
    )  # fmt: skip
    status = api.TrialStatus.TrialConditionType
    trials = [
        api.Trial(
            name=f"study-{name.lower()}",
            spec=api.TrialSpec(
                objective=experiment.spec.objective,
                parameter_assignments=api.TrialSpec.ParameterAssignments(
                    assignments=[api.ParameterAssignment(name="alpha", value=str(number + 1))]
                ),
                labels={"place": str(number)},
            ),
            status=api.TrialStatus(
                start_time="2026-01-01T00:00:00Z",
                completion_time="2026-01-01T01:00:00Z",
                condition=number,
                observation=api.Observation(metrics=[api.Metric(name="accuracy", value=f"0.{number}")]),
            ),
        )
        for name, number in status.items()
    ]
    return api.GetSuggestionsRequest(
        experiment=experiment, trials=trials, current_request_number=2, total_request_number=10
    )


def reply(api):
    """A reply as the service gives it."""
    assignment = api.ParameterAssignment(name="alpha", value="5")
    return api.GetSuggestionsReply(
        parameter_assignments=[api.GetSuggestionsReply.ParameterAssignments(assignments=[assignment])],
        algorithm=api.AlgorithmSpec(
            algorithm_name="nomad",
            algorithm_settings=[api.AlgorithmSetting(name="retune.issued", value="4")],
        ),
    )


if __name__ == "__main__":
    api = load()
    made = {"request": request(api), "reply": reply(api)}
    numbers = {
        "conditions": dict(api.TrialStatus.TrialConditionType.items()),
        "method": f"/{api.DESCRIPTOR.services_by_name['Suggestion'].full_name}/GetSuggestions",
    }
    content = {key: message.SerializeToString(deterministic=True).hex() for key, message in made.items()}
    Path(__file__).with_suffix(".json").write_text(json.dumps(content | numbers, indent=2) + "\n")
