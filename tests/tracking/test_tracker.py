"""Against a real SQLite database: what MLflow holds afterwards, and that nothing is there twice."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retune.tracking import Tracker, sender, trial_run
from retune.tracking.runs import connect
from tests.tracking.studies import SETTING, TAGS, Held, expect_whole, record, tell, tell_trial

pytest_plugins = ["tests.mlflow_server"]
WAIT = 120


@pytest.fixture
def start(database, tmp_path):
    """Return a function that starts a tracker on the database; all are closed at the end."""
    started = []

    def start(spool: str = "spool", tags: dict = TAGS, uri: str = database) -> Tracker:
        tracker = Tracker(uri, "demo", tmp_path / spool, tags)
        started.append(tracker)
        return tracker

    yield start
    for tracker in started:
        tracker.close(0)


def test_a_study_is_a_parent_run_with_a_child_for_each_trial(start, database, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    tracker = start()
    tracker.start_study({"trials": 2}, {"note": "first"})
    tell_trial(tracker, "trial-001")
    tracker.start_trial("trial-002", 2, "search", SETTING, 0)
    tracker.finish_trial(record("trial-002"), adapter)
    tracker.artifact(adapter / "adapter_config.json", "figures/history.json")
    tracker.finish_study()
    assert tracker.flush(WAIT) == 0
    assert tracker.refused == []

    held = Held(database, "demo")
    (parent,) = held.parents
    assert {**TAGS, "note": "first"}.items() <= parent.data.tags.items()
    assert parent.data.params == {"trials": "2"}
    assert parent.info.status == "FINISHED"
    child = held.trial("trial-001")
    assert child.data.params == {name: str(value) for name, value in SETTING.items()}
    assert child.data.tags["trial.name"] == "trial-001"
    assert child.data.tags["role"] == "search"
    assert child.data.metrics["bench/mmlu_stderr"] == 0.01
    assert json.loads(child.data.tags["bench.mmlu"])["shots"] == 5
    assert held.curve("trial-001") == [(k, 2 - 0.1 * k) for k in range(5)]
    kept = tmp_path / "mlartifacts/demo"
    assert (kept / parent.info.run_id / "artifacts/figures/history.json").read_text() == "{}"
    assert (kept / held.trial("trial-002").info.run_id / "artifacts/adapter/adapter_config.json").exists()
    assert trial_run(held.client, "demo", "trial-001", "search-1").info.run_id == child.info.run_id
    assert trial_run(held.client, "demo", "trial-001", "another search") is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "in_mlflow"),
    [
        ("completed", "FINISHED"),
        ("early_stopped", "FINISHED"),
        ("failed", "FAILED"),
        ("interrupted", "KILLED"),
    ],
)
def test_status_of_a_trial(start, database, status, in_mlflow):
    tracker = start()
    tracker.start_study({})
    tracker.start_trial("trial-001", 1, "search", SETTING, 0)
    tracker.finish_trial(record("trial-001", status))
    assert tracker.flush(WAIT) == 0
    child = Held(database, "demo").trial("trial-001")
    assert child.info.status == in_mlflow
    assert child.data.tags["retune.status"] == status
    assert child.data.metrics["validation_loss"] == 1.6  # what was measured before it ended is kept


def test_an_interrupted_trial_runs_again_in_its_own_run(start, database):
    tracker = start()
    tracker.start_trial("trial-001", 1, "search", SETTING, 0)
    tracker.metric("trial-001", "validation_loss", 2.0, 0)
    tracker.finish_trial(record("trial-001", "interrupted", points=1))
    tracker.close(WAIT)
    tracker = start()
    tell_trial(tracker, "trial-001")
    assert tracker.flush(WAIT) == 0
    held = Held(database, "demo")
    assert held.trial("trial-001").info.status == "FINISHED"
    assert held.curve("trial-001") == [(k, 2 - 0.1 * k) for k in range(5)]


def test_running_again_adds_nothing(start, database, tmp_path):
    for _ in range(2):
        tracker = start()
        tell(tracker)
        assert tracker.close(WAIT) == 0
    lines = (tmp_path / "spool/outbox.jsonl").read_text().splitlines()
    operations = [json.loads(line)["op"] for line in lines]
    assert operations[-3:] == ["finish_study", "study", "finish_study"]
    assert operations.count("finish") == 3
    expect_whole(Held(database, "demo"))


def test_a_lost_position_doubles_nothing(start, database, tmp_path):
    """The crash between sending and noting that it was sent, at its worst: nothing at all was noted."""
    tracker = start()
    tell(tracker)
    assert tracker.close(WAIT) == 0
    before = Held(database, "demo")
    (tmp_path / "spool/position.json").unlink()
    assert start().flush(WAIT) == 0
    held = Held(database, "demo")
    expect_whole(held)
    assert {run.info.run_id for run in held.children} == {run.info.run_id for run in before.children}


def test_a_lost_spool_doubles_nothing(start, database):
    """All operations are made anew, with other times; the runs are found by the search's digest."""
    tell(first := start())
    assert first.close(WAIT) == 0
    time.sleep(0.01)
    tell(second := start("another-spool"))
    assert second.close(WAIT) == 0
    expect_whole(Held(database, "demo"))


def test_another_search_is_another_parent_of_the_same_experiment(start, database):
    tell(first := start())
    tell(second := start("spool-2", {**TAGS, "search_digest": "search-2"}))
    assert first.flush(WAIT) == second.flush(WAIT) == 0
    held = Held(database, "demo")
    assert len(held.parents) == 2
    assert len(held.children) == 6


def test_a_new_database_is_sent_everything(start, database, tmp_path, empty_database):
    tell(tracker := start())
    assert tracker.close(WAIT) == 0
    moved = f"sqlite:///{tmp_path}/new.db"
    shutil.copy(empty_database, tmp_path / "new.db")
    tell(again := start(uri=moved))
    assert again.flush(WAIT) == 0
    expect_whole(Held(moved, "demo"))


def test_what_mlflow_refuses_is_set_aside_and_the_rest_sent(start, database, tmp_path):
    tracker = start()
    tracker.start_study({})
    tracker.metric("trial-001", "validation_loss", 2.0, 0)
    tracker.metric("trial-001", "not*a*name", 1.0, 0)
    tracker.metric("trial-001", "validation_loss", 1.9, 1)
    tracker.finish_trial(record("trial-001"), tmp_path / "pruned")
    tracker.finish_study()
    assert tracker.flush(WAIT) == 0
    assert [entry["operation"]["op"] for entry in tracker.refused] == ["metric", "finish"]
    assert "not*a*name" in tracker.refused[0]["reason"]
    assert "pruned" in tracker.refused[1]["reason"]
    held = Held(database, "demo")
    assert held.trial("trial-001").info.status == "FINISHED"
    assert held.parents[0].info.status == "FINISHED"
    assert sorted(held.curve("trial-001")) == [(k, 2 - 0.1 * k) for k in range(5)]


def test_params_that_changed_are_tags(start, database):
    tracker = start()
    tracker.start_study({"trials": 20})
    tracker.start_study({"trials": 40, "parallel": 2})
    assert tracker.flush(WAIT) == 0
    (parent,) = Held(database, "demo").parents
    assert parent.data.params == {"trials": "20", "parallel": "2"}
    assert parent.data.tags["param.trials"] == "40"


def test_the_run_of_a_pipeline_is_adopted(start, database, tmp_path, monkeypatch):
    client = connect(database)
    experiment = client.create_experiment("pipelines", artifact_location=(tmp_path / "a").as_uri())
    run = client.create_run(experiment)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    tell(tracker := start(uri="http://127.0.0.1:1"))
    assert tracker.flush(WAIT) == 0
    held = Held(database, "pipelines")
    assert [parent.info.run_id for parent in held.parents] == [run.info.run_id]
    expect_whole(held)


def test_a_file_is_kept_until_it_is_sent(start, database, tmp_path):
    figure = tmp_path / "history.svg"
    figure.write_text("<svg/>")
    tracker = start(uri="http://127.0.0.1:1")  # nobody listens there
    tracker.artifact(figure, "figures/history.svg")
    figure.unlink()
    assert tracker.close(0) == 1
    assert start().flush(WAIT) == 0
    (parent,) = Held(database, "demo").parents
    assert [item.path for item in connect(database).list_artifacts(parent.info.run_id, "figures")] == [
        "figures/history.svg"
    ]


def test_calls_neither_raise_nor_wait(start, tmp_path, caplog):
    tracker = start(uri="http://127.0.0.1:1")
    began = time.monotonic()
    tell(tracker, count=10, points=20)
    assert time.monotonic() - began < 2
    tracker.metric("trial-001", "validation_loss", object(), 0)  # type: ignore[arg-type]
    tracker.artifact(tmp_path / "not-there")
    tracker.finish_trial(None)  # type: ignore[arg-type]
    assert len([entry for entry in caplog.records if entry.levelname == "WARNING"]) == 3
    began = time.monotonic()
    assert tracker.flush(0.5) > 200
    assert time.monotonic() - began < 3


def test_a_server_that_is_long_away_is_no_reason_to_set_anything_aside(start, database, monkeypatch):
    monkeypatch.setattr(sender, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(sender, "LONGEST_WAIT", 0.02)
    tell(tracker := start(uri="http://127.0.0.1:1"))
    end = time.monotonic() + 30
    while tracker._sender._tries < 3 * sender.POISON_TRIES and time.monotonic() < end:
        time.sleep(0.05)
    assert tracker._sender._tries >= 3 * sender.POISON_TRIES
    assert tracker.refused == []
    tracker.close(0)
    assert start().flush(WAIT) == 0
    expect_whole(Held(database, "demo"))


def test_an_operation_that_always_breaks_the_server_does_not_hold_up_the_rest(start, database, monkeypatch):
    """A 500 for one operation, again and again, from a server that is well otherwise."""
    monkeypatch.setattr(sender, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(sender, "LONGEST_WAIT", 0.02)

    def broken(*_):
        raise RuntimeError("INTERNAL_ERROR")

    monkeypatch.setattr("retune.tracking.applied.StudyOnServer._bench", broken)
    tell(tracker := start(), count=1)
    assert tracker.flush(WAIT) == 0
    assert [entry["operation"]["op"] for entry in tracker.refused] == ["bench"]
    assert Held(database, "demo").parents[0].info.status == "FINISHED"


def test_a_spool_that_cannot_be_written_is_replaced(start, database, tmp_path):
    (tmp_path / "file").write_text("")
    tell(tracker := start("file/spool"))
    assert tracker.flush(WAIT) == 0
    expect_whole(Held(database, "demo"))


def test_two_trackers_on_one_spool_send_everything_once(start, database):
    first, second = start(), start()
    first.start_study({"trials": 3})
    for number, tracker in enumerate((first, second, first)):
        tell_trial(tracker, f"trial-{number:03d}")
    second.finish_study()
    assert first.flush(WAIT) == second.flush(WAIT) == 0
    expect_whole(Held(database, "demo"))


CHILD = """
import sys
from pathlib import Path
from retune.tracking import Tracker
from tests.tracking.studies import TAGS, tell_trial
tracker = Tracker(sys.argv[1], "demo", Path(sys.argv[2]), TAGS)
tracker.start_study({"trials": 3})
print("began", flush=True)
for number in range(3):
    tell_trial(tracker, f"trial-{number:03d}")
tracker.finish_study()
tracker.flush(120)
"""


@pytest.mark.slow
def test_killed_processes_lose_and_double_nothing(database, start, tmp_path):
    """SIGKILL while operations are sent, several times over; then one tracker sends what is left."""
    chance = random.Random(1)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, database, str(tmp_path / "spool")],
            cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, env=os.environ,
        )  # fmt: skip
        process.stdout.readline()
        end = time.monotonic() + 30
        while not (tmp_path / "spool/position.json").exists() and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
    tracker = start()
    tell(tracker)
    assert tracker.flush(WAIT) == 0
    expect_whole(Held(database, "demo"))
