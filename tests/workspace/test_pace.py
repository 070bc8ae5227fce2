"""The time that is left: by trainings, and only once enough of one was measured."""

import pytest

from retune.records import TrialRecord
from retune.workspace.pace import Pace


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def record(trial, seconds, role="search", status="completed"):
    return TrialRecord(
        trial=trial, number=0, role=role, assignment={}, seed=0, status=status, seconds=seconds
    )


@pytest.fixture
def clock():
    return Clock()


def test_the_base_and_a_failed_trial_tell_nothing(clock):
    pace = Pace(clock)
    pace.end(record("trial-000", 1.0, role="base"))
    pace.end(record("trial-001", 1.0, status="failed"))
    assert pace.left(8, {}, 1) is None
    pace.end(record("trial-002", 60.0))
    assert pace.left(7, {}, 1) == pytest.approx(420)


def test_a_running_trial_tells_once_a_quarter_of_it_is_done(clock):
    pace = Pace(clock)
    pace.begin("trial-001")
    clock.now = 5.0
    pace.reach("trial-001", 0.0)
    clock.now = 20.0
    assert pace.left(4, {"trial-001": 0.2}, 1) is None
    clock.now = 50.0
    assert pace.left(4, {"trial-001": 0.5}, 1) == pytest.approx(100 * 3.5)


def test_what_a_resumed_trial_had_done_before_is_not_counted_as_fast(clock):
    pace = Pace(clock)
    pace.begin("trial-001")
    pace.reach("trial-001", 0.5)
    clock.now = 25.0
    assert pace.left(1, {"trial-001": 0.75}, 1) == pytest.approx(25)


def test_no_more_trials_run_at_a_time_than_are_open(clock):
    pace = Pace(clock)
    pace.end(record("trial-001", 100.0))
    assert pace.left(8, {}, 4) == pytest.approx(200)
    assert pace.left(1, {}, 4) == pytest.approx(100)
