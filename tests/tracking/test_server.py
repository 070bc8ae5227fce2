"""Against a real MLflow server that is away, dies in mid-way, or hangs."""

import signal
import threading
import time

import pytest

from retune.tracking import Tracker, sender
from tests.tracking.proxy import Proxy
from tests.tracking.studies import SETTING, TAGS, Held, expect_whole, tell, tell_trial

pytest_plugins = ["tests.mlflow_server"]
pytestmark = pytest.mark.slow
WAIT = 180


@pytest.fixture
def patience(monkeypatch):
    """Less of it than in earnest."""
    monkeypatch.setattr(sender, "FIRST_TIMEOUT", 2)
    monkeypatch.setattr(sender, "LONGEST_TIMEOUT", 16)
    monkeypatch.setattr(sender, "LONGEST_WAIT", 1.0)


def test_a_study_on_a_server(mlflow_server, tmp_path):
    tracker = Tracker(mlflow_server.uri, "plain", tmp_path, TAGS)
    tell(tracker)
    assert tracker.close(WAIT) == 0
    assert tracker.refused == []
    expect_whole(Held(mlflow_server.uri, "plain"))


@pytest.fixture
def proxy(mlflow_server):
    """Return a function that puts a proxy before the server."""
    made = []

    def before(**faults) -> Proxy:
        made.append(Proxy(mlflow_server.port, **faults))
        return made[-1]

    yield before
    for each in made:
        each.close()


WRITES = (
    "experiments/create",
    "runs/create",
    "runs/log-batch",
    "runs/update",
    "artifacts/trial.json",
)


def test_lost_answers(mlflow_server, proxy, tmp_path, patience):
    """The server did what it was asked, but nobody was told: asked again, it does nothing twice."""
    between = proxy(lose_first=WRITES)
    tracker = Tracker(between.uri, "lost-answers", tmp_path, TAGS)
    tell(tracker)
    assert tracker.close(WAIT) == 0
    assert all(between.calls[name] >= 1 for name in WRITES), between.calls
    assert tracker.refused == []
    expect_whole(Held(mlflow_server.uri, "lost-answers"))


def test_requests_that_arrive_late(mlflow_server, proxy, tmp_path, patience):
    """A run is made, and then made once more by the request that was given up: the second one goes."""
    between = proxy(delay_first=("runs/create",))
    tracker = Tracker(mlflow_server.uri, "late-requests", tmp_path, TAGS)
    tracker.start_study({"trials": 3})
    assert tracker.close(WAIT) == 0
    tracker = Tracker(between.uri, "late-requests", tmp_path, TAGS)
    tracker.start_trial("trial-000", 0, "search", SETTING, 0)
    assert tracker.flush(WAIT) == 0
    end = time.monotonic() + 60
    while len(Held(mlflow_server.uri, "late-requests").children) < 2:
        assert time.monotonic() < end, "the late request never came through"
        time.sleep(0.2)
    tell(tracker)
    assert tracker.close(WAIT) == 0
    expect_whole(Held(mlflow_server.uri, "late-requests"))


def test_server_that_hangs(mlflow_server, tmp_path, patience):
    """SIGSTOP: requests time out here, yet the server may carry them out later. No run is there twice."""
    tracker = Tracker(mlflow_server.uri, "hanging", tmp_path, TAGS)
    tracker.start_study({"trials": 3})
    assert tracker.flush(WAIT) == 0
    for number in range(3):
        mlflow_server.signal(signal.SIGSTOP)
        tell_trial(tracker, f"trial-{number:03d}")
        assert tracker.flush(4.5) > 0  # long enough for a request to be given up
        mlflow_server.signal(signal.SIGCONT)
        time.sleep(0.5)
    tracker.finish_study()
    assert tracker.close(WAIT) == 0
    expect_whole(Held(mlflow_server.uri, "hanging"))


def test_server_killed_in_mid_way_and_away_at_the_start(mlflow_server, tmp_path, patience):
    tracker = Tracker(mlflow_server.uri, "killed", tmp_path / "killed", TAGS)
    tracker.start_study({"trials": 3})
    tell_trial(tracker, "trial-000", 200)
    kill = threading.Timer(0.3, mlflow_server.kill)
    kill.start()
    tell_trial(tracker, "trial-001", 200)
    kill.join()
    tell_trial(tracker, "trial-002", 200)
    tracker.finish_study()
    assert tracker.left > 0

    late = Tracker(mlflow_server.uri, "late", tmp_path / "late", TAGS)
    tell(late)
    assert late.close(0.1) > 0  # this process ends while nobody listens

    mlflow_server.start()
    assert tracker.close(WAIT) == 0
    expect_whole(Held(mlflow_server.uri, "killed"), points=200)
    again = Tracker(mlflow_server.uri, "late", tmp_path / "late", TAGS)
    assert again.close(WAIT) == 0
    expect_whole(Held(mlflow_server.uri, "late"))
