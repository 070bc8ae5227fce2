"""The MLflow server, or the storage, goes away while a study runs: nothing is lost."""

import json
import time
from pathlib import Path

import pytest

from tests.conftest import DEMO, SMALL, wait_for

pytestmark = pytest.mark.slow
pytest_plugins = ["tests.mlflow_server", "tests.s3_server"]


def test_a_server_that_is_away_in_mid_run_loses_nothing(retune, tmp_path, mlflow_server):
    from mlflow import MlflowClient

    server = mlflow_server
    process = retune("run", str(DEMO), *SMALL, "search.trials=8", f"tracking.uri={server.uri}", "--json")

    def finished():
        return list(tmp_path.glob("artifacts/first-study/search-*/trials/*/trial.json"))

    wait_for(lambda: len(finished()) >= 2, seconds=180)
    server.kill()
    wait_for(lambda: len(finished()) >= 6, seconds=180, message="the trials did not go on without the server")
    server.start()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    client = MlflowClient(server.uri, server.uri)
    experiment = client.get_experiment_by_name("first-study")
    runs = client.search_runs([experiment.experiment_id])
    children = {run.data.tags["retune.trial"]: run for run in runs if "mlflow.parentRunId" in run.data.tags}
    assert len(children) == len([run for run in runs if "mlflow.parentRunId" in run.data.tags]) == 9
    for path in finished():
        record = json.loads(Path(path).read_text())
        run = children[record["trial"]]
        assert run.info.status == "FINISHED"
        assert run.data.metrics["validation_loss"] == pytest.approx(record["values"]["validation_loss"])
        steps = {(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "validation_loss")}
        assert steps == {(m["step"], m["value"]) for m in record["curves"]["validation_loss"]}
        assert {k: run.data.params[k] for k in record["assignment"]} == {
            k: str(v) for k, v in record["assignment"].items()
        }
    outcome = json.loads(out)
    assert (
        str(client.get_model_version_by_alias("first-study-adapter", "champion").version)
        == outcome["gate"]["challenger"]
    )


def test_a_storage_that_is_away_in_mid_run_ends_nothing(retune, s3, moto_server, tmp_path):
    """The outage is longer than a command at a terminal would retry (five attempts within 15 s)."""
    from retune import store

    words = [f"artifacts.uri={s3}/artifacts", "search.trials=4"]
    process = retune(
        "run", str(DEMO), *SMALL, *words, "--json", XDG_CACHE_HOME=str(tmp_path / "cache"), RETUNE_CACHE=""
    )

    def finished():
        return [name for name in store.listing(f"{s3}/artifacts") if name.endswith("/trial.json")]

    wait_for(finished, seconds=240)
    moto_server.stop()
    try:
        time.sleep(18)
    finally:
        moto_server.start()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out)["gate"]["decision"] == "promote"
    assert len(finished()) == 5
