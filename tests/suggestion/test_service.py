"""The service through a real channel, with the requests that Katib sends and the ones it should not."""

import contextlib
import functools
import math
import random
import signal
import threading
import time
from pathlib import Path

import grpc
import pytest
from katib_requests import Service, add_trial, ask, assignments, call, experiment

from retune import search
from retune.search import Objective, Observation
from retune.space import Parameter, Space, tribes2024
from retune.study import Constraint
from retune.suggestion import messages as katib
from retune.suggestion.experiment import ISSUED

ROW = {"rank": 8, "dropout": 0.1, "alpha": 32, "learning_rate": 1e-05}


def loss(given):
    return (math.log10(float(given["learning_rate"])) + 4.2) ** 2 + (float(given["alpha"]) / 64 - 0.6) ** 2


@functools.cache
def studied(trials):
    """The settings that `nomad` tries in a study of so many trials, every seventh of which fails."""
    history = []
    for number in range(trials):
        assignment = search.suggest("nomad", tribes2024(), Objective(), {}, history, 1, 0)[0]
        values = {} if number % 7 == 3 else {"validation_loss": loss(assignment)}
        history.append(Observation(assignment, "completed" if values else "failed", values, number=number))
    return history


def request_of(trials=0, algorithm="nomad", **more):
    """A request with the trials of a study that went on for a while, one at a time."""
    request = katib.GetSuggestionsRequest(experiment=experiment(tribes2024(), algorithm, **more))
    for entry in studied(trials):
        condition = katib.SUCCEEDED if entry.values else katib.FAILED
        add_trial(request, entry.assignment, condition, entry.values.get("validation_loss"))
    return request


def test_the_health_name_that_the_kubelet_probes(channel):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(channel)
    for name in ("", "manager.v1beta1.Suggestion"):
        reply = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=1)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as error:
        stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=1)
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("count", [1, 3, 20])
@pytest.mark.parametrize("trials", [0, 1, 15])
def test_exactly_the_asked_count_in_the_words_of_katib(channel, count, trials):
    request = ask(request_of(trials), count)
    found = assignments(call(channel, "GetSuggestions", request))
    assert len(found) == count
    known = {tuple(pair.value for pair in t.spec.parameter_assignments.assignments) for t in request.trials}
    for given in found:
        assert list(given) == ["rank", "dropout", "alpha", "learning_rate"]
        assert given["rank"] in ("4", "8", "16", "32", "64", "128", "256", "512")
        assert given["dropout"] in ("0.0", "0.0001", "0.001", "0.01", "0.1")
        assert given["alpha"].isdigit()
        assert 1e-6 <= float(given["learning_rate"]) <= 1e-3
        assert tuple(given.values()) not in known
    assert len({tuple(given.values()) for given in found}) == count


def test_words_of_a_list_come_back_as_they_were_written(channel):
    space = Space(
        parameters=(
            Parameter(name="dropout", kind="discrete", values=(0.1, 0.2)),
            Parameter(name="schedule", kind="categorical", values=("linear", "cosine")),
        )
    )
    request = katib.GetSuggestionsRequest(experiment=experiment(space))
    feasible = request.experiment.spec.parameter_specs.parameters[0].feasible_space
    feasible.list[:] = ["0.20", "1e-1"]
    add_trial(request, {"dropout": "0.20", "schedule": "cosine"}, loss=1.0)
    found = assignments(call(channel, "GetSuggestions", ask(request, 3)))
    assert {tuple(given.values()) for given in found} == {
        ("1e-1", "linear"),
        ("1e-1", "cosine"),
        ("0.20", "linear"),
    }


@pytest.mark.slow
def test_the_same_answer_when_asked_again_in_another_order_after_a_kill():
    request = ask(request_of(20), 5)
    answers = []
    for attempt in range(3):
        service = Service()
        try:
            with grpc.insecure_channel(service.address) as channel:
                if attempt == 1:  # a process that has served others before
                    call(channel, "GetSuggestions", ask(request_of(9, "tpe"), 2))
                    call(channel, "GetSuggestions", ask(request_of(3), 2))
                if attempt == 2:
                    trials = list(request.trials)
                    random.Random(1).shuffle(trials)
                    del request.trials[:]
                    request.trials.extend(trials)
                for _ in range(2):  # the first reply was lost, as far as Katib knows
                    reply = call(channel, "GetSuggestions", request)
                    answers.append(reply.SerializeToString(deterministic=True))
        finally:
            service.close()
    assert len(set(answers)) == 1


def test_metrics_that_are_no_numbers_teach_that_the_point_is_bad(channel):
    base = request_of(12)
    failed = request_of(12)
    add_trial(failed, {**ROW, "alpha": 5}, katib.FAILED)
    expected = call(channel, "GetSuggestions", ask(failed, 4))
    for text in ("", "unavailable", "NaN", "inf", "-inf", "1,5"):
        request = katib.GetSuggestionsRequest()
        request.CopyFrom(base)
        add_trial(request, {**ROW, "alpha": 5}, katib.SUCCEEDED, text)
        assert call(channel, "GetSuggestions", ask(request, 4)) == expected
    absent = katib.GetSuggestionsRequest()
    absent.CopyFrom(base)
    add_trial(absent, {**ROW, "alpha": 5}, katib.SUCCEEDED)
    assert call(channel, "GetSuggestions", ask(absent, 4)) == expected


def test_foreign_trials_change_nothing(channel):
    request = ask(request_of(12), 4)
    expected = call(channel, "GetSuggestions", request)
    add_trial(request, {"other": 1}, loss=-5)
    add_trial(request, {**ROW, "extra": 1}, loss=-5)
    add_trial(request, {**ROW, "alpha": 5000}, loss=-5)
    add_trial(request, {**ROW, "alpha": "many"}, loss=-5)
    add_trial(request, ROW, loss=-5).spec.objective.objective_metric_name = "accuracy"
    assert call(channel, "GetSuggestions", request) == expected


def test_running_trials_are_not_proposed_again(channel):
    request = request_of(14)
    seen = []
    for _ in range(10):
        found = assignments(call(channel, "GetSuggestions", ask(request, 1)))[0]
        seen.append(tuple(found.values()))
        add_trial(request, found, katib.RUNNING)
    assert len(set(seen)) == 10


def test_trials_that_vanish_are_never_asked_for_again(channel):
    """Katib never sends a trial whose metrics are unavailable: only the setting tells that it was issued."""
    request = request_of(12)
    seen = []
    for hidden in range(12):
        total = len(request.trials) + hidden + 1
        reply = call(channel, "GetSuggestions", ask(request, 1, total))
        assignment = assignments(reply)[0]
        seen.append(tuple(assignment.values()))
        settings = request.experiment.spec.algorithm.algorithm_settings
        for entry in [e for e in settings if e.name == ISSUED]:
            settings.remove(entry)
        settings.extend(reply.algorithm.algorithm_settings)
    assert len(set(seen)) == 12


def test_once_the_issued_points_are_known_others_are_foreign(channel):
    request = request_of(12)
    reply = call(channel, "GetSuggestions", ask(request, 1))
    request.experiment.spec.algorithm.algorithm_settings.extend(reply.algorithm.algorithm_settings)
    add_trial(request, assignments(reply)[0], loss=0.5)
    expected = call(channel, "GetSuggestions", ask(request, 3, 16))
    add_trial(request, {**ROW, "alpha": 7}, loss=-100, name="of-another-namespace")
    assert call(channel, "GetSuggestions", ask(request, 3, 16)) == expected


def test_maximising_is_minimising_the_negative(channel):
    up = katib.GetSuggestionsRequest(
        experiment=experiment(tribes2024(), objective=Objective("accuracy", "maximize"))
    )
    down = katib.GetSuggestionsRequest(experiment=experiment(tribes2024(), objective=Objective("accuracy")))
    for trial in request_of(14).trials:
        for request, sign in ((up, -1), (down, 1)):
            copy = request.trials.add()
            copy.CopyFrom(trial)
            copy.spec.objective.objective_metric_name = "accuracy"
            for metric in copy.status.observation.metrics:
                metric.name, metric.value = "accuracy", repr(sign * float(metric.value))
    assert call(channel, "GetSuggestions", ask(up, 5)) == call(channel, "GetSuggestions", ask(down, 5))


def test_more_than_four_mebibytes(channel):
    request = request_of(0, "random")
    for number in range(10_000):
        add_trial(
            request, {**ROW, "learning_rate": 1e-5 * (1 + number % 80 / 100)}, loss=float(number)
        ).name += "x" * 300
    assert request.ByteSize() > 4 * 2**20
    assert len(call(channel, "GetSuggestions", ask(request, 2)).parameter_assignments) == 2


@pytest.mark.parametrize("total", [0, 4, 9, 500, -1])
def test_a_total_that_does_not_fit_the_trials_is_survived(channel, total):
    """Katib's total shrinks with parallelTrialCount and exceeds the trials seen when metrics never came."""
    request = ask(request_of(12), 3, total)
    known = {tuple(pair.value for pair in t.spec.parameter_assignments.assignments) for t in request.trials}
    found = {tuple(given.values()) for given in assignments(call(channel, "GetSuggestions", request))}
    assert len(found) == 3
    assert not found & known


def test_all_trials_at_an_experiments_first_call_are_foreign(channel):
    """Nothing was issued before, so they are those of an equally named experiment in another namespace."""
    alone = assignments(call(channel, "GetSuggestions", ask(request_of(0), 3)))
    assert assignments(call(channel, "GetSuggestions", ask(request_of(12), 3, total=3))) == alone


def test_zero_asked_gives_zero(channel):
    assert not call(channel, "GetSuggestions", ask(request_of(3), 0)).parameter_assignments


def test_several_experiments_at_once_get_their_own_answers(channel):
    requests = [
        ask(request_of(k, algorithm, name=f"study-{k}"), 3) for k in (5, 12) for algorithm in ("nomad", "tpe")
    ]
    expected = [call(channel, "GetSuggestions", request) for request in requests]
    answers = {}

    def go(place):
        answers[place] = call(channel, "GetSuggestions", requests[place % len(requests)])

    threads = [threading.Thread(target=go, args=(place,)) for place in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answers[place] == expected[place % len(requests)] for place in range(12))


def refused(channel, changed):
    """Return the problems that `ValidateAlgorithmSettings` names, as text."""
    with pytest.raises(grpc.RpcError) as error:
        call(channel, "ValidateAlgorithmSettings", katib.ValidateAlgorithmSettingsRequest(experiment=changed))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return error.value.details()


def test_a_good_experiment_is_accepted(channel):
    request = katib.ValidateAlgorithmSettingsRequest(experiment=experiment(tribes2024()))
    assert call(channel, "ValidateAlgorithmSettings", request) == katib.ValidateAlgorithmSettingsReply()


def test_all_that_the_webhook_lets_through_is_refused_at_once(channel):
    bad = experiment(tribes2024(), settings={"LH_SAERCH": 3, "seed": -4})
    specs = bad.spec.parameter_specs.parameters
    del specs[0].feasible_space.list[:]
    specs[1].feasible_space.list[0] = "much"
    specs[2].feasible_space.min = "70"
    specs[3].feasible_space.min = "0"
    for name, low in (("empty", ""), ("words", "low"), ("nan", "NaN")):
        spec = specs.add(name=name, parameter_type=katib.DOUBLE)
        spec.feasible_space.min, spec.feasible_space.max = low, "1"
    half = specs.add(name="half", parameter_type=katib.INT)
    half.feasible_space.min, half.feasible_space.max, half.feasible_space.step = "0.5", "3", "-1"
    words = specs.add(name="texts", parameter_type=katib.INT)
    words.feasible_space.min, words.feasible_space.max, words.feasible_space.step = "one", "two", "three"
    bad.spec.algorithm.algorithm_settings.add(name="default.texts", value="four")
    specs.add(name="half", parameter_type=katib.INT)
    specs.add(name="untyped")
    bad.spec.objective.type = 0
    bad.spec.objective.objective_metric_name = ""
    bad.spec.algorithm.algorithm_settings.add(name="default.nobody", value="3")
    bad.spec.algorithm.algorithm_settings.add(
        name="constraints", value="peak_gpu_gib under 80; peak_gpu_gib<=8"
    )
    bad.spec.nas_config.SetInParent()
    details = refused(channel, bad)
    for part in (
        "'rank' has none", "'much'", "low=70", "low=0", "`min` of 'empty'", "'low'", "'NaN'", "0.5", "'untyped'",
        "'one'", "'two'", "'three'", "'four'", "duplicates are ['half']",
        "objective.type", "objectiveMetricName", "'default.nobody'", "'peak_gpu_gib under 80'", "additionalMetricNames",
        "nasConfig", "'LH_SAERCH'", "did you mean 'LH_SEARCH'", "'seed'", "-4",
    ):  # fmt: skip
        assert part in details, part


def test_an_unknown_algorithm_is_refused_with_the_known_ones(channel):
    details = refused(channel, experiment(tribes2024(), algorithm="nomat"))
    assert "nomat" in details
    assert "'nomad'" in details


def test_a_get_suggestions_that_cannot_work_says_why(channel):
    with pytest.raises(grpc.RpcError) as error:
        call(channel, "GetSuggestions", ask(request_of(0, "nomat"), 1))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_constraints_of_a_study_arrive(channel):
    objective = Objective(constraints=(Constraint(metric="peak_gpu_gib", max=80.0),))
    good = experiment(tribes2024(), objective=objective)
    call(channel, "ValidateAlgorithmSettings", katib.ValidateAlgorithmSettingsRequest(experiment=good))


def _own_threads(folder):
    """Return how many threads Python started; gRPC's own have names."""
    names = []
    for task in folder.glob("task/*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it just ended
            names.append((task / "comm").read_text())
    return names.count((folder / "comm").read_text())


@pytest.mark.slow
def test_many_calls_leave_nothing_behind(tmp_path, monkeypatch):
    """A call leaves no descriptor, thread, child or file of the service.

    gRPC starts a thread of its pool, or opens a descriptor, when it likes, so what is told apart is one more with each call.
    """
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    service, sizes = Service(), []
    folder = Path("/proc", str(service.process.pid))
    before = _own_threads(folder)
    try:
        with grpc.insecure_channel(service.address) as channel:
            for number in range(30):
                call(channel, "GetSuggestions", ask(request_of(10 + number % 3), 1))
                children = [
                    name for task in folder.glob("task/*/children") for name in task.read_text().split()
                ]
                sizes.append((len(list(folder.glob("fd/*"))), _own_threads(folder), children))
    finally:
        service.close()
    assert sizes[-1][0] - sizes[14][0] < 15 // 2
    assert sizes[-1][1] - before < 30 // 2  # its pool has ten threads
    assert sizes[-1][2] == []
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_client_that_hangs_up_harms_nobody(channel):
    request = ask(request_of(25), 8)
    expected = call(channel, "GetSuggestions", request)
    for _ in range(5):
        with pytest.raises(grpc.RpcError):
            call(channel, "GetSuggestions", request, timeout=0.03)
    assert call(channel, "GetSuggestions", request) == expected


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_it_cleanly_after_the_call_under_way(number):
    service = Service()
    try:
        answers = []
        with grpc.insecure_channel(service.address) as channel:
            grpc.channel_ready_future(channel).result(10)
            request = ask(request_of(25), 30)
            thread = threading.Thread(target=lambda: answers.append(call(channel, "GetSuggestions", request)))
            thread.start()
            time.sleep(0.3)
            service.process.send_signal(number)
            thread.join()
        assert service.process.wait(timeout=30) == 0
        assert len(answers[0].parameter_assignments) == 30
    finally:
        service.close()


@pytest.mark.slow
def test_a_taken_port_is_said_in_a_sentence(service):
    import subprocess
    import sys

    command = [sys.executable, "-m", "retune", "serve", "--host", "127.0.0.1", "--port", str(service.port)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert f":{service.port} cannot be bound" in ended.stderr
