"""`retune submit` and `retune schedule`, with KFP's own client, against a stand-in for its API server."""

import json
import os
from pathlib import Path

import pytest

from retune.errors import InputError, RetuneError
from retune.launch.cron import six_fields
from retune.launch.submit import Kubeflow, arguments_of
from retune.steps.entry import unpacked
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_other_pods_are_another_version(kubeflow, small):
    client = Kubeflow(kubeflow.address)
    versions = {
        client.submit("search", small(*CLUSTER, f"cluster.gpus={n}"), {"study": "{}"}).version for n in (1, 2)
    }
    assert len(versions) == 2
    assert len(kubeflow.pipelines) == 1


@pytest.mark.slow
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


def test_a_token_that_is_renewed_while_a_run_is_waited_for(kubeflow, tmp_path, monkeypatch):
    """In a pod the kubelet renews it every hour or two; a run takes days."""
    monkeypatch.setattr("retune.launch.submit.PATIENCE_SECONDS", 0.0)
    file, kubeflow.token = tmp_path / "token", "first"
    file.write_text("first\n")
    client = Kubeflow(kubeflow.address, token_file=file)
    kubeflow.runs["run"] = {"run_id": "run", "state": "RUNNING"}

    def renewed(state):
        if state == "RUNNING":
            kubeflow.token = "second"
            file.write_text("second\n")
            kubeflow.runs["run"]["state"] = "SUCCEEDED"

    assert client.wait("run", renewed, poll_seconds=0.01) == "SUCCEEDED"


def test_a_token_from_a_pipe_counts_until_the_end(kubeflow):
    """As in `--token-file <(kubectl create token default-editor)`: a second reading finds nothing."""
    kubeflow.token = "from-a-pipe"
    reader, writer = os.pipe()
    os.write(writer, b"from-a-pipe\n")
    os.close(writer)
    client = Kubeflow(kubeflow.address, token_file=Path(f"/proc/self/fd/{reader}"))
    kubeflow.runs["run"] = {"run_id": "run", "state": "SUCCEEDED"}
    assert client.wait("run", lambda state: None) == "SUCCEEDED"
    os.close(reader)


def test_a_file_without_a_token_is_refused(tmp_path):
    (tmp_path / "token").write_text("\n")
    with pytest.raises(InputError, match=r"--token-file must hold a token, but .*token is empty"):
        Kubeflow("http://127.0.0.1:9", token_file=tmp_path / "token")


def test_a_server_that_is_away_or_refuses_is_told_in_one_sentence(kubeflow, small):
    client = Kubeflow(kubeflow.address)
    kubeflow.faults += [403] * 9
    with pytest.raises(
        RetuneError, match=r"could not upload .* at http://127.0.0.1:\d+: 403 .*upstream is away"
    ):
        client.submit("search", small(*CLUSTER), {})


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_schedule_that_cannot_be_made_leaves_the_old_one(kubeflow, small):
    client = Kubeflow(kubeflow.address)
    client.schedule("search", small(*CLUSTER), {}, "0 3 * * 1")
    with pytest.raises(InputError, match="five fields"):
        client.schedule("search", small(*CLUSTER), {}, "daily")
    assert len(kubeflow.schedules) == 1


@pytest.mark.parametrize(
    "cron",
    ["0 3 * * 1", "*/15 * * * *", "0 3 1,15 * *", "0 0-6/2 * jan-MAR mon-fri", "30 0 4 ? * *", "0 3 * * SUN"],
)
def test_times_that_are_taken(cron):
    assert len(six_fields(cron).split()) == 6


@pytest.mark.parametrize(
    "cron",
    ["every day", "daily", "", "60 3 * * 1", "0 24 * * *", "0 3 0 * *", "0 3 * 13 *", "0 3 * * 7", "0 3 * * mo",
     "a b c d e", "1-2-3 * * * *", "*/0 * * * *", "5-1 * * * *", "-1 * * * *", "1, * * * *", "² * * * *"],
)  # fmt: skip
def test_times_that_are_none(cron):
    with pytest.raises(InputError, match=r"of a schedule|a schedule has five fields"):
        six_fields(cron)


def invoke(*words, **env):
    from click.testing import CliRunner

    from retune.cli import cli

    return CliRunner().invoke(cli, words, env=env)


NOWHERE = {"KUBECONFIG": "/nonexistent", "KF_PIPELINES_ENDPOINT": None, "KUBERNETES_SERVICE_HOST": None}


def test_without_a_cluster_submit_says_what_to_pass(small, recwarn):
    found = invoke("submit", str(DEMO), *SMALL, *CLUSTER, **NOWHERE)
    assert isinstance(found.exception, InputError)
    assert "no cluster is configured: pass --host" in str(found.exception)
    assert not [w for w in recwarn if w.category is FutureWarning]


def test_a_cluster_that_does_not_answer_is_told_without_the_librarys_names(small, recwarn):
    found = invoke("submit", str(DEMO), *SMALL, *CLUSTER, "--host", "http://127.0.0.1:9", **NOWHERE)
    assert "could not reach Kubeflow Pipelines at http://127.0.0.1:9: " in str(found.exception)
    assert "Connection refused" in str(found.exception)
    assert "ConnectionPool" not in str(found.exception)
    assert not [w for w in recwarn if w.category is FutureWarning]


def test_bad_times_and_studies_are_refused_before_anything_is_reached(kubeflow, small):
    words = [str(DEMO), *SMALL, *CLUSTER, "--host", kubeflow.address]
    assert "five fields" in str(invoke("schedule", *words, "--cron", "every day").exception)
    assert "cluster.images.train" in str(
        invoke("submit", str(DEMO), *SMALL, "--host", kubeflow.address).exception
    )
    assert kubeflow.requests == []


def test_one_word_for_a_dry_run(kubeflow, small):
    words = [str(DEMO), *SMALL, *CLUSTER]
    shown = invoke("submit", *words, "--dry-run")
    assert shown.exit_code == 0
    assert invoke("schedule", *words, "--cron", "0 3 * * 1", "--dry-run").stdout == shown.stdout
    old = invoke("submit", *words, "--render")
    assert old.stdout == shown.stdout
    assert "--dry-run" in old.stderr
    assert "--render" not in invoke("submit", "--help").stdout
    assert kubeflow.requests == []


def long_study(small, count, length=60):
    """A study whose warm starts make its JSON long."""
    starts = ", ".join(f"s3://bucket/{'x' * length}/{n}" for n in range(count))
    return small(*CLUSTER, f"search.warm_start=[{starts}]")


@pytest.mark.slow
def test_a_study_over_kfps_limit_is_packed(kubeflow, small):
    study = long_study(small, 300)
    plain = {"study": study.model_dump_json()}
    client = Kubeflow(kubeflow.address)
    with pytest.raises(InputError, match="10,000 bytes"):
        client.submit("search", study, plain)
    assert kubeflow.runs == {}
    client.submit("search", study, arguments_of(study))
    client.schedule("search", study, arguments_of(study), "0 3 * * 1")
    (run,) = kubeflow.runs.values()
    assert unpacked(run["runtime_config"]["parameters"]["study"]) == study.model_dump(mode="json")
    assert arguments_of(small(*CLUSTER)) == {"study": small(*CLUSTER).model_dump_json()}


def test_a_study_that_is_too_long_even_packed_is_refused(kubeflow, small):
    import random

    noise = random.Random(1)
    starts = ", ".join(f"s3://b/{noise.getrandbits(400):x}" for _ in range(300))
    study = small(*CLUSTER, f"search.warm_start=[{starts}]")
    with pytest.raises(InputError, match="even compressed"):
        Kubeflow(kubeflow.address).submit("search", study, arguments_of(study))
    assert kubeflow.requests[-1][1] == "/healthz"


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


def test_an_address_of_another_scheme_is_refused():
    with pytest.raises(InputError, match=r"--host is an address of http:// or https://, but got 'ftp://x'"):
        Kubeflow("ftp://x")
