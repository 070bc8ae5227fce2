"""`retune submit` and `retune schedule`, with KFP's own client, against a stand-in for its API server."""

import json

import pytest

from retune.errors import InputError, RetuneError
from retune.launch.submit import Kubeflow
from tests.conftest import DEMO, ROOT, SMALL, wait_for
from tests.launch.kubeflow_server import serve
from tests.launch.test_package import CLUSTER

pytest_plugins = ["tests.mlflow_server", "tests.s3_server"]


@pytest.fixture
def kubeflow(tmp_path):
    folder = tmp_path / "kubeflow"
    folder.mkdir()
    server, cluster, address = serve(folder)
    cluster.address = address
    yield cluster
    server.shutdown()
    server.server_close()
    for process in cluster.processes.values():
        process.kill()
        process.wait()


def test_a_package_is_uploaded_once(kubeflow, small):
    client, study = Kubeflow(kubeflow.address), small(*CLUSTER)
    runs = [client.submit("search", study, {"study": study.model_dump_json()}) for _ in range(2)]
    assert len(kubeflow.pipelines) == 1
    assert len({run.version for run in runs}) == 1
    # The first upload makes the pipeline itself; the version that runs has the package's digest in its name.
    assert [v["display_name"] for v in kubeflow.versions.values()] == ["retune-search", runs[0].version]
    first, second = kubeflow.runs.values()
    assert first["pipeline_version_reference"] == second["pipeline_version_reference"]
    assert json.loads(first["runtime_config"]["parameters"]["study"]) == study.model_dump(mode="json")
    assert first["service_account"] == "retune"
    assert runs[0].url == f"{kubeflow.address}/#/runs/details/{runs[0].id}"


def test_other_pods_are_another_version(kubeflow, small):
    client = Kubeflow(kubeflow.address)
    versions = {
        client.submit("search", small(*CLUSTER, f"cluster.gpus={n}"), {"study": "{}"}).version for n in (1, 2)
    }
    assert len(versions) == 2
    assert len(kubeflow.pipelines) == 1


def test_waiting_bears_lost_replies_and_ends_on_a_cancelled_run(kubeflow, small):
    client = Kubeflow(kubeflow.address)
    run = client.submit("search", small(*CLUSTER), {"study": "{}"})
    kubeflow.faults += [503, 502]
    seen = []

    def watch(state):
        seen.append(state)
        if state == "PENDING":
            kubeflow.runs[run.id]["state"] = "CANCELED"

    assert client.wait(run.id, watch, poll_seconds=0.01) == "CANCELED"
    assert seen == ["PENDING", "CANCELED"]


def test_a_server_that_is_away_or_refuses_is_told_in_one_sentence(kubeflow, small):
    client = Kubeflow(kubeflow.address)
    kubeflow.faults += [403] * 9
    with pytest.raises(
        RetuneError, match=r"could not upload .* at http://127.0.0.1:\d+: 403 .*upstream is away"
    ):
        client.submit("search", small(*CLUSTER), {})


def test_a_study_has_one_schedule(kubeflow, small):
    client, study = Kubeflow(kubeflow.address), small(*CLUSTER)
    client.schedule("search", study, {"study": "{}"}, "0 3 * * 1")
    client.schedule("search", study, {"study": "{}"}, "30 0 4 * * *")
    (made,) = kubeflow.schedules.values()
    assert made["trigger"]["cron_schedule"]["cron"] == "30 0 4 * * *"
    assert made["max_concurrency"] == 1
    assert made["no_catchup"] is True
    assert made["mode"] == "ENABLE"
    assert client.unschedule(study) == 1
    assert not kubeflow.schedules


def test_five_fields_get_their_seconds(kubeflow, small):
    Kubeflow(kubeflow.address).schedule("search", small(*CLUSTER), {}, "0 3 * * 1")
    (made,) = kubeflow.schedules.values()
    assert made["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * 1"


def test_a_schedule_that_cannot_be_made_leaves_the_old_one(kubeflow, small):
    client = Kubeflow(kubeflow.address)
    client.schedule("search", small(*CLUSTER), {}, "0 3 * * 1")
    with pytest.raises(InputError, match="five fields"):
        client.schedule("search", small(*CLUSTER), {}, "daily")
    assert len(kubeflow.schedules) == 1


@pytest.mark.slow
def test_a_submitted_study_runs_to_its_end(kubeflow, retune, s3, mlflow_server):
    """The uploaded package itself is run, with artifacts on S3 and a real MLflow server, as pods would."""
    from retune import store

    kubeflow.execute = True
    words = [
        *SMALL, "search.trials=2", f"artifacts.uri={s3}/artifacts", f"tracking.uri={mlflow_server.uri}",
        f"cluster.volumes=[{{claim: demo, mount: {ROOT}}}]", "cluster.images={train: r/train, eval: r/eval}",
    ]  # fmt: skip
    process = retune("submit", str(DEMO), *words, "--host", kubeflow.address, "--wait", "--json")
    out, err = process.communicate(timeout=500)
    logs = "".join(path.read_text()[-3000:] for path in kubeflow.folder.glob("*.log"))
    assert process.returncode == 0, err + logs
    assert json.loads(out)["state"] == "SUCCEEDED"
    names = store.listing(f"{s3}/artifacts/first-study")
    assert any("report.html" in name for name in names), names


@pytest.mark.slow
def test_a_run_that_fails_says_so_by_its_exit_code(kubeflow, retune):
    process = retune("submit", str(DEMO), *SMALL, *CLUSTER, "--host", kubeflow.address, "--wait")
    wait_for(lambda: kubeflow.runs, seconds=120)
    (run,) = kubeflow.runs.values()
    run["state"] = "FAILED"
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the run ended as FAILED" in err
