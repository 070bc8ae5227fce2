"""Our message classes against the bytes of Katib's own generated code: names and numbers of every field that is used."""

import json
from pathlib import Path

from retune.suggestion import messages as katib

WIRE = json.loads(Path(__file__).with_name("katib_wire.json").read_text())  # made by katib_wire.py
CONDITIONS = {
    "CREATED": katib.CREATED, "RUNNING": katib.RUNNING, "SUCCEEDED": katib.SUCCEEDED, "KILLED": katib.KILLED,
    "FAILED": katib.FAILED, "METRICSUNAVAILABLE": katib.METRICS_UNAVAILABLE, "EARLYSTOPPED": katib.EARLY_STOPPED,
    "UNKNOWN": 7,
}  # fmt: skip


def test_what_katib_wrote_is_read_field_by_field():
    request = katib.GetSuggestionsRequest.FromString(bytes.fromhex(WIRE["request"]))
    assert (request.current_request_number, request.total_request_number) == (2, 10)
    experiment, spec = request.experiment, request.experiment.spec
    assert experiment.name == "study"
    rate, alpha, rank, schedule = spec.parameter_specs.parameters
    space = rate.feasible_space
    assert (rate.name, rate.parameter_type) == ("learning_rate", katib.DOUBLE)
    assert (space.min, space.max, space.step, space.distribution) == (
        "1e-06",
        "0.001",
        "1e-06",
        katib.LOG_UNIFORM,
    )
    assert (alpha.parameter_type, alpha.feasible_space.distribution) == (katib.INT, katib.NORMAL)
    assert (rank.parameter_type, rank.feasible_space.distribution) == (katib.DISCRETE, katib.UNIFORM)
    assert (schedule.parameter_type, schedule.feasible_space.distribution) == (
        katib.CATEGORICAL,
        katib.LOG_NORMAL,
    )
    assert list(schedule.feasible_space.list) == ["linear", "cosine"]
    assert (spec.objective.type, spec.objective.goal) == (katib.MAXIMIZE, 0.99)
    assert spec.objective.objective_metric_name == "accuracy"
    assert list(spec.objective.additional_metric_names) == ["loss", "memory"]
    assert spec.algorithm.algorithm_name == "nomad"
    assert [(s.name, s.value) for s in spec.algorithm.algorithm_settings] == [("seed", "7")]
    assert (spec.parallel_trial_count, spec.max_trial_count) == (3, 50)
    assert not spec.HasField("nas_config")
    assert WIRE["conditions"] == CONDITIONS
    assert [trial.status.condition for trial in request.trials] == sorted(CONDITIONS.values())
    for number, trial in enumerate(request.trials):
        assert trial.name.startswith("study-")
        assert trial.spec.objective.objective_metric_name == "accuracy"
        pairs = [(p.name, p.value) for p in trial.spec.parameter_assignments.assignments]
        assert pairs == [("alpha", str(number + 1))]
        assert [(label.key, label.value) for label in trial.spec.labels] == [("place", str(number))]
        assert trial.status.start_time == "2026-01-01T00:00:00Z"
        assert trial.status.completion_time == "2026-01-01T01:00:00Z"
        assert [(m.name, m.value) for m in trial.status.observation.metrics] == [("accuracy", f"0.{number}")]


def test_what_is_answered_are_katibs_bytes():
    reply = katib.GetSuggestionsReply()
    reply.parameter_assignments.add().assignments.add(name="alpha", value="5")
    reply.algorithm.algorithm_name = "nomad"
    reply.algorithm.algorithm_settings.add(name="retune.issued", value="4")
    assert reply.SerializeToString(deterministic=True).hex() == WIRE["reply"]
    assert WIRE["method"] == f"/{katib.SERVICE}/GetSuggestions"
