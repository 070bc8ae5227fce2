"""Requests that no Katib sends: each is answered or refused with a message, and the service keeps working."""

import contextlib
import socket
import threading
import time

import grpc
import katib_requests as requests
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retune.search import Objective
from retune.space import Parameter, Space
from retune.suggestion import messages as katib
from retune.suggestion.service import SuggestionService

SPACE = Space(parameters=(Parameter(name="p0", kind="integer", low=1, high=64), Parameter(name="p1", kind="categorical", values=("a", "b"))))  # fmt: skip

STRANGE = [
    "", "0", "1", "-1", "64", "0.5", "1e-4", "1e999", "-1e999", "nan", "inf", "9" * 5000, "-" + "9" * 400, "²", "٣", "1_000", " 1 ", "0x10",
    "\0", "1e-320", "5e-324", "1e308", "-1e308", "True", "x" * 5000, "é" * 3000, '"', "\\", "\n", "9007199254740993", "a", "b", "p0", "p1", "3;4",
    "minimize acc", "acc <= 1", "acc <= nan", "a<=" * 3000 + " ", '{"p0": [1]}', '{"a": NaN}', "[" * 3000, '{"p0": []}', "0.0", "0.0;1.1", ";;",
    "0.0 validation_loss=nan", "0.0 validation_loss=1e999", "0.0 =1", "9" * 5000 + ".1", "../..", "\u202e", "validation_loss",
]  # fmt: skip
NAMES = ["seed", "constraints", "further_objectives", "default.p0", "log_step.p0", "when.p0", "when.p1", "retune.issued", "retune.warm_start", "default.", "x"]  # fmt: skip
LABELS = ["retune.number", "retune.warm-start", "retune.source", "retune.rungs", "x"]

text = st.sampled_from(STRANGE) | st.text(max_size=8).filter(lambda t: t.isprintable())
number = st.integers(-1, 7) | st.sampled_from([2**31 - 1, -(2**31)])
pairs = lambda names: st.lists(st.tuples(st.sampled_from(names), text), max_size=3)  # noqa: E731
parameter = st.tuples(st.sampled_from(["p0", "p1", ""]), number, number, text, text, st.sampled_from(["", "", "1", "1e-9", "1e308", "nan"]), st.lists(text, max_size=4))  # fmt: skip
trial = st.tuples(text, number, text, text, st.none() | pairs(["p0", "p1", "x"]), pairs(["validation_loss", "acc", ""]), pairs(LABELS))  # fmt: skip


@st.composite
def asked(draw):
    """A request of which each part is right, or anything."""
    request = katib.GetSuggestionsRequest()
    algorithm = draw(st.sampled_from(["random", "random", "tpe", "", "no such"]))
    if draw(st.booleans()):
        request.experiment.CopyFrom(requests.experiment(SPACE, algorithm, objective=Objective()))
    else:
        spec = request.experiment.spec
        spec.algorithm.algorithm_name = algorithm
        spec.objective.type, spec.objective.objective_metric_name = (
            draw(st.sampled_from([0, 1, 2])),
            draw(text),
        )
        spec.parallel_trial_count = draw(number)
        for name, kind, distribution, low, high, step, values in draw(st.lists(parameter, max_size=3)):
            entry = spec.parameter_specs.parameters.add(name=name, parameter_type=kind)
            entry.feasible_space.distribution = distribution
            entry.feasible_space.min, entry.feasible_space.max, entry.feasible_space.step = low, high, step
            entry.feasible_space.list.extend(values)
    request.experiment.name = draw(text)
    for name, value in draw(pairs(NAMES)):
        request.experiment.spec.algorithm.algorithm_settings.add(name=name, value=value)
    for name, condition, begun, done, own, metrics, labels in draw(st.lists(trial, max_size=4)):
        entry = request.trials.add(name=name)
        entry.status.condition, entry.status.start_time, entry.status.completion_time = condition, begun, done
        for key, value in own if own is not None else [("p0", "3"), ("p1", "a")]:
            entry.spec.parameter_assignments.assignments.add(name=key, value=value)
        for key, value in metrics:
            entry.status.observation.metrics.add(name=key, value=value)
        for key, value in labels:
            entry.spec.labels.add(key=key, value=value)
    request.current_request_number = draw(st.sampled_from([0, 1, 2, 2, 5, -1, -(2**31), 2**31 - 1]))
    request.total_request_number = draw(number)
    return request


class Refused(Exception):
    pass


class Context:
    """The part of a gRPC context that methods use."""

    def abort(self, code, details):
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert len(details.encode()) < 7000
        raise Refused(details)

    def is_active(self):
        return True


@settings(
    max_examples=200, deadline=5000, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)
@given(asked())
def test_every_request_is_answered_or_refused(request_):
    count = max(request_.current_request_number, 0)
    try:
        reply = SuggestionService(answer_seconds=20).get_suggestions(request_, Context())
    except Refused:
        return
    assert len(reply.parameter_assignments) == count
    names = {entry.name for entry in request_.experiment.spec.parameter_specs.parameters}
    for entry in reply.parameter_assignments:
        assert {pair.name for pair in entry.assignments} == names
    again = SuggestionService(answer_seconds=20).get_suggestions(request_, Context())
    assert again == reply


def right(count=2):
    request = katib.GetSuggestionsRequest(experiment=requests.experiment(SPACE, "random"))
    for place in range(4):
        requests.add_trial(request, {"p0": place + 1, "p1": "ab"[place % 2]}, loss=1.0 + place)
    return requests.ask(request, count)


DIGITS = "9" * 5000  # more than Python reads as a number


@pytest.mark.parametrize("name", [DIGITS, "²", "study-²", "study-" + DIGITS])
@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_names_and_labels_of_trials_may_be_anything(name, algorithm):
    request, plain = right(), right()
    for asked_ in (request, plain):
        asked_.experiment.spec.algorithm.algorithm_name = algorithm
    for entry in request.trials:
        entry.name = f"{entry.name}-{name}"
        entry.spec.labels.add(key="retune.number", value=name)
    assert SuggestionService().get_suggestions(request, Context()) == SuggestionService().get_suggestions(
        plain, Context()
    )


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("when.p1", "[" * 3000),
        ("retune.issued", f"{DIGITS}.1"),
        ("retune.warm_start", f"{DIGITS}.1 validation_loss=1"),
    ],
)
def test_settings_may_be_anything(setting, value):
    request = right()
    request.experiment.spec.algorithm.algorithm_settings.add(name=setting, value=value)
    with contextlib.suppress(Refused):
        SuggestionService().get_suggestions(request, Context())


def test_numbers_of_any_size():
    request = right()
    for entry in request.trials:
        entry.spec.parameter_assignments.assignments[0].value = "9" * 400
    feasible = request.experiment.spec.parameter_specs.parameters[0]
    feasible.parameter_type, feasible.feasible_space.list[:] = katib.DISCRETE, ["1", "2"]
    assert len(SuggestionService().get_suggestions(request, Context()).parameter_assignments) == 2
    with pytest.raises(ValueError, match="finite"):
        SPACE["p0"].level("9" * 400)
    with pytest.raises(ValueError, match="`step` must be at most"):
        Parameter(name="r", kind="integer", low=1, high=64, scale="log", step=1e308)


def refused(channel, request):
    with pytest.raises(grpc.RpcError) as caught:
        requests.call(channel, "GetSuggestions", request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, caught.value
    return caught.value.details()


def test_what_is_too_large_is_refused_at_once(channel):
    begin = time.monotonic()
    endless = right()
    endless.current_request_number = 2**31 - 1
    assert "at most 10,000 points are returned at once, but got 2,147,483,647" in refused(channel, endless)
    many = right()
    many.experiment.spec.parameter_specs.parameters[1].feasible_space.list.extend(map(str, range(200_000)))
    assert "`list` of 'p1' has at most 10,000 values, but got 200,002" in refused(channel, many)
    wide = right()
    for place in range(2000):
        wide.experiment.spec.parameter_specs.parameters.add(name=f"q{place}", parameter_type=katib.INT)
    assert "at most 1,000 parameters, but got 2,002" in refused(channel, wide)
    long = right()
    long.experiment.spec.algorithm.algorithm_settings.add(name="constraints", value="a<=" * 10_000_000 + " ")
    assert "setting 'constraints' has at most 10,000 letters, but got 30,000,001" in refused(channel, long)
    wrong = right()
    for place in range(500):
        wrong.experiment.spec.algorithm.algorithm_settings.add(name=f"é{place}" * 50, value="x" * 5000)
    assert refused(channel, wrong)
    assert time.monotonic() - begin < 30
    assert len(requests.assignments(requests.call(channel, "GetSuggestions", right(1000)))) == 1000


def test_clients_that_stay_silent_go_or_give_up(service, channel):
    """Connections that send nothing, half a greeting or bytes of no protocol; calls that are cancelled, 60 at the same time."""
    wanted = requests.call(channel, "GetSuggestions", right())
    open_ones = []
    for begin in (
        b"",
        b"PRI * HTTP/2.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 5000,
    ) * 20:
        one = socket.create_connection(("127.0.0.1", service.port))
        with contextlib.suppress(OSError):
            one.sendall(begin)
        open_ones.append(one)
    heavy = katib.GetSuggestionsRequest(experiment=requests.experiment(SPACE, "gp"))
    for place in range(300):
        requests.add_trial(heavy, {"p0": place % 64 + 1, "p1": "ab"[place % 2]}, loss=1.0 + place)
    stub = channel.unary_unary(
        "/api.v1.beta1.Suggestion/GetSuggestions", request_serializer=lambda m: m.SerializeToString()
    )
    calls = [stub.future(requests.ask(heavy, 2), timeout=60) for _ in range(60)]
    for call in calls:
        call.cancel()
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(requests.call(channel, "GetSuggestions", right())))
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for one in open_ones:
        one.close()
    assert answers == [wanted] * 20
    assert service.process.poll() is None


def test_a_call_that_was_given_up_costs_nothing():
    class Gone(Context):
        def is_active(self):
            return False

    request = right()
    request.experiment.spec.algorithm.algorithm_name = "no such"  # it is not even read
    assert SuggestionService().get_suggestions(request, Gone()) == katib.GetSuggestionsReply()
