"""A release is upgraded while a study runs on it."""

import pytest

from tests.e2e.cluster import until
from tests.e2e.objects import TRIALS, start, values

pytestmark = pytest.mark.cluster


def test_a_running_study_outlives_an_upgrade_from_the_last_release(team, images, last_chart):
    """Under `nomad`, so that the suggestion service, whose registration is made anew, is asked before and after."""
    if last_chart is None:
        pytest.skip("git does not know the last release here: a clone with its history is needed")
    job = start(team, images, "upgraded", "search.parallel=1")
    until(lambda: team.pods(TRIALS), 300, "a trial")
    team.helm(
        "upgrade", "retune", "charts/retune", "--wait", "--timeout", "20m", *values(team.namespace, *images)
    )
    assert team.ended(job) == "", "the study had ended before the upgrade"
    outcome = team.outcome(job)
    assert (outcome["trials"], outcome["failed"]) == (4, 0)
    assert outcome["gate"]["decision"] == "promote"


def test_the_upgraded_release_passes_its_own_checks(team):
    printed = team.helm("test", "retune", "--logs")
    for said in ("wrote, read and removed s3://", "keeps metrics and artifacts", "Katib has our algorithms"):
        assert said in printed
    assert printed.count("POD LOGS: retune-test-") == 3
