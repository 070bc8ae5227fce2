"""A release is upgraded while a study runs on it."""

from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.e2e.cluster import until
from tests.e2e.objects import TRIALS, start, values

pytestmark = pytest.mark.cluster


def test_a_running_study_outlives_an_upgrade_from_the_last_release(released, images, last_chart):
    """Under `nomad`, so that the suggestion service, whose registration is made anew, is asked before and after.

    Without MLflow's login, which the last release did not have: the study was given no account.
    """
    if last_chart is None:
        pytest.skip("git does not know the last release here: a clone with its history is needed")
    job = start(released, images, "upgraded", "search.parallel=1", "cluster.secrets=[retune-storage]")
    until(lambda: released.pods(TRIALS), 300, "a trial")
    words = ["--wait", "--timeout", "20m", "--set", "mlflow.login.enabled=false"]
    released.helm("upgrade", "retune", "charts/retune", *words, *values(released.namespace, *images))
    assert released.ended(job) == "", "the study had ended before the upgrade"
    outcome = released.outcome(job)
    assert (outcome["trials"], outcome["failed"]) == (4, 0)
    assert outcome["gate"]["decision"] == "promote"


def test_the_upgraded_release_passes_its_own_checks(team):
    """Now with MLflow's login, which `team` turned on."""
    printed = team.helm("test", "retune", "--logs")
    for said in ("wrote, read and removed s3://", "keeps metrics and artifacts", "Katib has our algorithms"):
        assert said in printed
    assert printed.count("POD LOGS: retune-test-") == 3


def test_mlflow_asks_for_an_account(team):
    with team.forwarded("retune-mlflow", 5000) as address, pytest.raises(HTTPError, match="401"):
        urlopen(f"{address}/api/2.0/mlflow/experiments/search?max_results=1", timeout=60)
    with team.mlflow() as client:
        assert client.search_experiments(max_results=1)
