"""What the service does when an algorithm hangs or breaks, and what its metrics and logs say."""

import json
import subprocess
import sys
import threading
import time
import urllib.request
from types import SimpleNamespace

import grpc
import pytest
from katib_requests import Service, ask, call, experiment

from retune import search
from retune.search import Algorithm
from retune.search.settings import Settings
from retune.space import tribes2024
from retune.suggestion import messages as katib
from retune.suggestion.metrics import Metrics
from retune.suggestion.service import SuggestionService, start

WAITED_FOR = SimpleNamespace(is_active=lambda: True)
"""What the methods ask of gRPC's context."""


def broken(problem, count):
    raise ZeroDivisionError("a bug")


def stuck(problem, count):
    time.sleep(3)
    return []


@pytest.mark.parametrize(("algorithm", "reason"), [(broken, "ZeroDivisionError"), (stuck, "TimeoutError")])
def test_a_broken_or_stuck_algorithm_is_replaced_by_random_points(monkeypatch, algorithm, reason):
    monkeypatch.setitem(search.ALGORITHMS, "nomad", Algorithm(Settings, algorithm, ""))
    metrics = Metrics()
    service = SuggestionService(answer_seconds=0.5, metrics=metrics)
    request = ask(katib.GetSuggestionsRequest(experiment=experiment(tribes2024())), 3)
    begun = time.monotonic()
    reply = service.get_suggestions(request, WAITED_FOR)
    assert len(reply.parameter_assignments) == 3
    assert time.monotonic() - begun < 2.5
    labels = {"algorithm": "nomad", "reason": reason}
    assert metrics.registry.get_sample_value("retune_fallbacks_total", labels) == 1
    assert service.get_suggestions(request, WAITED_FOR) == reply


def test_an_algorithm_that_never_ends_is_answered_for_before_katib_gives_up(monkeypatch):
    """Through a real channel, with what the service's own limit leaves of Katib's 60 seconds; the limit itself is shorter here."""
    (limit, metrics) = SuggestionService.__init__.__defaults__
    monkeypatch.setattr(SuggestionService.__init__, "__defaults__", (1.0, metrics))
    left = 60 - limit
    ended = threading.Event()
    hung = Algorithm(Settings, lambda problem, count: ended.wait(), "")
    monkeypatch.setitem(search.ALGORITHMS, "nomad", hung)
    server, port = start("127.0.0.1", 0)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            request = ask(katib.GetSuggestionsRequest(experiment=experiment(tribes2024())), 3)
            reply = call(channel, "GetSuggestions", request, timeout=1.0 + left)
            assert len(reply.parameter_assignments) == 3
    finally:
        ended.set()
        server.stop(0).wait()


def test_algorithms_that_never_end_cost_later_calls_nothing(monkeypatch):
    """There are more of them than the service has threads; each delays only its own call."""
    ended = threading.Event()
    hung = Algorithm(Settings, lambda problem, count: ended.wait(), "")
    monkeypatch.setitem(search.ALGORITHMS, "nomad", hung)
    metrics = Metrics()
    service = SuggestionService(answer_seconds=0.05, metrics=metrics)
    stuck = ask(katib.GetSuggestionsRequest(experiment=experiment(tribes2024())), 1)
    try:
        for _ in range(15):
            service.get_suggestions(stuck, WAITED_FOR)
        service._answer_seconds = 30
        well = ask(katib.GetSuggestionsRequest(experiment=experiment(tribes2024(), "lhs")), 1)
        service.get_suggestions(well, WAITED_FOR)
    finally:
        ended.set()
    found = metrics.registry.get_sample_value
    assert found("retune_fallbacks_total", {"algorithm": "nomad", "reason": "TimeoutError"}) == 15
    assert found("retune_fallbacks_total", {"algorithm": "lhs", "reason": "TimeoutError"}) is None


@pytest.mark.slow
def test_metrics_over_http_and_one_json_line_a_call(tmp_path):
    log = tmp_path / "log"
    with socket_port() as port, log.open("w") as stream:
        service = Service(log=stream, options=["--metrics-port", str(port)])
    try:
        with grpc.insecure_channel(service.address) as channel:
            call(
                channel,
                "GetSuggestions",
                ask(katib.GetSuggestionsRequest(experiment=experiment(tribes2024())), 2),
            )
            bad = katib.GetSuggestionsRequest(experiment=experiment(tribes2024(), "nobody"))
            with pytest.raises(grpc.RpcError):
                call(channel, "GetSuggestions", ask(bad, 2))
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    finally:
        service.close()
    assert 'retune_suggested_points_total{algorithm="nomad",origin="start"} 2.0' in page
    assert 'retune_suggest_seconds_count{algorithm="nomad"} 1.0' in page
    assert "retune_refused_total 1.0" in page
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["message"] for line in lines] == ["suggested", "refused"]
    assert lines[0]["experiment"] == "study"
    assert lines[0]["count"] == 2
    assert "nobody" in lines[1]["problems"][0]


class socket_port:
    """A port that was free a moment ago."""

    def __enter__(self):
        import socket

        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            return found.getsockname()[1]

    def __exit__(self, *_):
        return None


def test_the_service_ends_with_its_parent(tmp_path):
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'retune', 'serve', '--host', '127.0.0.1', '--port', '0',\n"
        "    '--die-with-parent'], stdout=subprocess.PIPE, text=True)\n"
        "print(child.stdout.readline().split(':')[-1].strip(), flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    address = f"127.0.0.1:{parent.stdout.readline().strip()}"
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(10)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with grpc.insecure_channel(address) as channel:
            try:
                grpc.channel_ready_future(channel).result(0.5)
            except grpc.FutureTimeoutError:
                return
        time.sleep(0.2)
    raise AssertionError("the service outlived its parent")
