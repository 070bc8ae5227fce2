"""One retuning at a time, even if processes die; and the sum of what they spent."""

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from retune import store
from retune.errors import Interrupted
from retune.retuning.lease import AlreadyRunning, Lease, Retuning, Retunings, stop_when
from retune.retuning.run import Options, plan
from tests.conftest import wait_for

pytest_plugins = ["tests.s3_server"]
BEAT = 0.1
HOLDER = """
import sys, time
from retune.retuning.lease import Retunings
with Retunings(sys.argv[1], float(sys.argv[2])).acquire(2, {"base": "b"}, ["because"]) as lease:
    print(lease.entry.number, flush=True)
    time.sleep(float(sys.argv[3]))
"""


def test_a_retuning_that_failed_without_a_word_is_still_told(small):
    """For instance a record written by another version: the next reading names it."""
    loaded = small()
    record = Retuning(number=1, state="failed", problem="")
    store.write(Retunings(loaded.root).path(1), record.to_json())
    assert plan(loaded, Options()).reasons[-1] == "retuning 1 failed: no reason was noted"


@pytest.fixture
def hold():
    """Return a function that starts a process which holds a retuning, and returns once it does."""
    started = []

    def start(root, seconds=60.0):
        words = [sys.executable, "-c", HOLDER, str(root), str(BEAT), str(seconds)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process, int(process.stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_is_refused_while_the_first_lives_and_takes_over_when_it_was_killed(tmp_path, hold):
    first, number = hold(tmp_path)
    assert number == 1
    with pytest.raises(
        AlreadyRunning, match=rf"retuning 1 has been running since .*process {first.pid}"
    ) as refused:
        Retunings(str(tmp_path), BEAT).acquire(1, {}, [])
    assert refused.value.exit_code == 75
    spent = wait_for(lambda: Retunings(str(tmp_path)).entries()[0].gpu_hours)
    first.kill()
    _, number = hold(tmp_path)
    assert number == 2
    assert Retunings(str(tmp_path)).spent(1) > spent  # what the dead one spent still counts


@pytest.mark.slow
def test_of_many_at_once_one_begins(tmp_path):
    code = HOLDER.replace("lease.entry.number", "'begun'")
    words = [sys.executable, "-c", code, str(tmp_path), str(BEAT), "600"]
    found = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    wait_for(lambda: sum(process.poll() is not None for process in found) == 3, 300)
    for process in found:
        process.kill()
    text = [process.communicate() for process in found]
    assert [out for out, _ in text].count("begun\n") == 1, text
    assert all("AlreadyRunning" in err for out, err in text if not out)


@pytest.mark.slow
def test_a_process_that_stood_still_sees_that_it_was_replaced(tmp_path, hold):
    first, _ = hold(tmp_path, seconds=8)
    os.kill(first.pid, signal.SIGSTOP)
    with Retunings(str(tmp_path), BEAT).acquire(1, {}, []) as lease:
        assert lease.entry.number == 2
        before = store.read(Retunings(str(tmp_path)).path(1))
        os.kill(first.pid, signal.SIGCONT)
        first.wait(timeout=60)
    after = store.read(Retunings(str(tmp_path)).path(1))
    assert Retuning.model_validate_json(after).beat <= Retuning.model_validate_json(before).beat + 1
    assert Retunings(str(tmp_path)).entries()[1].state == "done"


def test_the_lock_holds_in_a_bucket_too(s3):
    retunings = Retunings(f"{s3}/study", BEAT)
    with retunings.acquire(1, {}, []) as lease:
        assert lease.entry.number == 1
        with pytest.raises(AlreadyRunning):
            retunings.acquire(1, {}, [])
    assert retunings.acquire(1, {}, []).entry.number == 2


def test_how_it_ended_is_kept(tmp_path):
    retunings = Retunings(str(tmp_path), BEAT)
    for error, state in ((None, "done"), (Interrupted("stop"), "stopped"), (ValueError("bad"), "failed")):
        try:
            with retunings.acquire(1, {}, []):
                if error:
                    raise error
        except type(error) if error else ():
            pass
        assert retunings.entries()[-1].state == state
    assert [entry.problem for entry in retunings.entries()] == [None, "stop", "bad"]


def test_only_the_hours_of_the_last_days_count(tmp_path):
    retunings = Retunings(str(tmp_path))
    for number, (age, hours, state) in enumerate([(40, 100, "done"), (5, 3, "failed"), (0, 1, "running")], 1):
        when = (datetime.now(UTC) - timedelta(days=age)).isoformat()
        entry = Retuning(number=number, gpu_hours=hours, updated=when, state=state, gpus=4, beat_seconds=360)
        store.write(retunings.path(number), entry.to_json())
    # Of the running one the time until its next heartbeat counts too, since it may be dead already
    assert retunings.spent(30) == pytest.approx(3 + 1 + 4 * 0.1)
    assert retunings.spent(60) == pytest.approx(104.4)


@pytest.mark.parametrize(
    ("hours", "left", "signals", "wanted"),
    [
        (5.0, None, 0, 0),
        (5.0, 10.0, 0, 0),
        (9.9, 10.0, 0, 1),  # the last minute of 8 GPUs is for checkpoints
        (9.995, 10.0, 0, 2),
        (0.004, 0.01, 0, 0),
        (0.006, 0.01, 0, 1),
        (0.0095, 0.01, 0, 2),
        (5.0, None, 1, 1),
        (5.0, 10.0, 2, 2),
    ],
)
def test_a_run_stops_before_its_budget_is_overspent(tmp_path, hours, left, signals, wanted):
    lease = Lease(Retunings(str(tmp_path)), Retuning(number=1, gpus=8))
    lease._began = time.monotonic() - hours / 8 * 3600
    assert stop_when(lease, left, lambda: signals)() == wanted
