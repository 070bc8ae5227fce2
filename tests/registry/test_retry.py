"""Registration and promotion while a real MLflow server is away, or loses its answers."""

import threading
import time

import pytest

from retune import outages
from retune.errors import InputError
from retune.records import GateRecord
from retune.registry import promotion
from retune.registry.aliases import Aliases, aliases
from retune.registry.client import wait_for_server
from retune.registry.lock import Lock
from retune.registry.versions import champion_facts, download_adapter, register
from retune.tracking import server
from retune.tracking.runs import connect
from tests.registry.test_promotion import adapter  # noqa: F401, a fixture
from tests.selection.test_choice import trial
from tests.tracking.proxy import Proxy

pytest_plugins = ["tests.mlflow_server"]
pytestmark = pytest.mark.slow
AWAY = 2.0


@pytest.fixture
def patient(monkeypatch):
    """As in a step, where MLflow's client does not retry and we do."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv(outages.MLFLOW, "500")  # where the machine is busy, the server takes minutes to start


@pytest.fixture
def away(mlflow_server):
    """Return a function that kills the server and starts it again a few seconds later."""
    threads = []

    def kill():
        server.problem.cache_clear()
        mlflow_server.kill()
        threads.append(threading.Timer(AWAY, mlflow_server.start))
        threads[-1].start()

    yield kill
    for thread in threads:
        thread.join()


def test_every_call_of_a_run_waits_for_the_server(mlflow_server, patient, adapter, tmp_path):  # noqa: F811
    """The proxy before the server opens late, since a server takes seconds to start."""
    way = Proxy(mlflow_server.port)
    way.close()
    uri, port = way.uri, int(way.uri.rpartition(":")[2])
    gate = GateRecord(study="s", model="waits", challenger="1", champion=None, decision="promote", rules=[])
    calls = [
        lambda: register(uri, "waits", trial(1, 1.5), adapter("w"), study="waits"),
        lambda: aliases(uri, "waits"),
        lambda: champion_facts(uri, "waits"),
        lambda: promotion.promote(uri, "waits", "1", None),
        lambda: promotion.note_gate(uri, gate),
        lambda: download_adapter(uri, "waits", "1", tmp_path / "copy"),
        lambda: wait_for_server(uri),
    ]
    for call in calls:
        server.problem.cache_clear()
        opened = []
        timer = threading.Timer(AWAY, lambda: opened.append(Proxy(mlflow_server.port, own_port=port)))
        timer.start()
        try:
            call()
            assert opened, "it did not wait"
        finally:
            timer.join()
            opened[0].close()
    uri = mlflow_server.uri
    assert aliases(uri, "waits") == Aliases("1", None, "1")
    assert connect(uri).get_model_version("waits", "1").tags["gate"] == "promote"


def test_a_server_that_dies_in_mid_promotion(mlflow_server, patient, away, adapter, monkeypatch):  # noqa: F811
    """It dies while the lock is held: the next attempt takes over the lock once it has expired."""
    uri = mlflow_server.uri
    register(uri, "dies", trial(1, 1.5), adapter("d"), study="dies")
    enter, entered = Lock.__enter__, []

    def taken(lock):
        held = enter(lock)
        lock._expiry = 2.0
        if not entered:
            entered.append(lock)
            away()
        return held

    monkeypatch.setattr(Lock, "__enter__", taken)
    monkeypatch.setattr(Lock.__init__, "__defaults__", (2.0,))
    assert promotion.promote(uri, "dies", "1", None).champion == "1"
    assert "promoted" in connect(uri).get_model_version("dies", "1").tags


@pytest.mark.parametrize(
    "endpoint", ["registered-models/create", "model-versions/create", "registered-models/alias"]
)
def test_lost_answers_register_nothing_twice(mlflow_server, patient, adapter, endpoint):  # noqa: F811
    between = Proxy(mlflow_server.port, lose_first=(endpoint,))
    model = endpoint.replace("/", "-")
    try:
        assert register(between.uri, model, trial(1, 1.5), adapter("l"), study="lost") == "1"
        assert promotion.promote(between.uri, model, "1", None).champion == "1"
    finally:
        between.close()
    # A version whose making was not confirmed is found, and not made again
    assert between.calls[endpoint] >= 1
    assert len(connect(mlflow_server.uri).search_model_versions(f"name = '{model}'")) == 1


def test_without_patience_an_absence_is_told_at_once(monkeypatch):
    monkeypatch.delenv(outages.MLFLOW, raising=False)
    begun = time.monotonic()
    with pytest.raises(server.Unreachable, match="does not answer"):
        aliases("http://127.0.0.1:9", "m")
    assert time.monotonic() - begun < 30


def test_an_absence_that_lasts_says_for_how_long_it_was_waited(monkeypatch):
    monkeypatch.setenv(outages.MLFLOW, "1")
    with pytest.raises(server.Unreachable, match=r"does not answer.*tried for 1 s, RETUNE_PATIENCE_SECONDS"):
        aliases("http://127.0.0.1:9", "m")


@pytest.mark.parametrize("text", ["long", "-1", "inf", "nan"])
def test_patience_is_a_number_of_seconds(monkeypatch, text):
    monkeypatch.setenv(outages.MLFLOW, text)
    with pytest.raises(InputError, match="a number of seconds"):
        outages.retry_seconds()


def test_only_a_pod_waits_with_what_mlflow_was_not_told(monkeypatch):
    monkeypatch.setenv(outages.MLFLOW, "150")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert outages.flush_seconds() == 10
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    assert outages.flush_seconds() == 150


def test_less_patience_than_usual_shortens_the_wait_outside_of_a_pod(monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.delenv(outages.MLFLOW, raising=False)
    assert outages.flush_seconds() == 10
    monkeypatch.setenv(outages.MLFLOW, "1")
    assert (outages.flush_seconds(), outages.flush_seconds(30)) == (1, 1)
    monkeypatch.setenv(outages.MLFLOW, "150")
    assert outages.flush_seconds(30) == 30
