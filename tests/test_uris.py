"""A password in an address is seen by the one who connects and by nobody else."""

import json
import os
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from retune import study as studies
from retune import uris
from retune.cli import cli
from retune.errors import InputError, RetuneError, TrialFailed
from retune.study.reach import unreachable
from retune.tracking.runs import connect, tracking_uri

pytest_plugins = ["tests.mlflow_server"]

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    for name in (
        uris.ENVIRONMENT,
        "MLFLOW_TRACKING_URI",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
    ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://me:hunter2@db:5432/runs", "postgresql://me:***@db:5432/runs"),
        ("postgresql+psycopg2://me:hunter2@db/runs?sslmode=require", "postgresql+psycopg2://me:***@db/runs?sslmode=require"),
        ("http://me:hun@ter/2@host:5000/x", "http://me:***@host:5000/x"),
        ("https://:hunter2@host", "https://:***@host"),
        ("https://hunter2@host/x", "https://***@host/x"),
        ("http://me:12345@host", "http://me:***@host"),
        ("https://host/x?token=hunter2&n=1", "https://host/x?token=***&n=1"),
        ("https://host/x?X-Amz-Signature=hunter2#a", "https://host/x?X-Amz-Signature=***#a"),
        ("s3://KEY:hunter2@bucket/x", "s3://KEY:***@bucket/x"),
        ('{"uri": "mysql://a:hunter2@h/d", "b": "x@y"}', '{"uri": "mysql://a:***@h/d", "b": "x@y"}'),
        ("cannot reach http://a:hunter2@h/x: refused", "cannot reach http://a:***@h/x: refused"),
    ],
)  # fmt: skip
def test_what_is_masked(text, masked):
    assert uris.mask(text) == masked
    assert uris.mask(masked) == masked
    assert uris.hide(text) == masked
    assert uris.reveal(masked) == text


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/a@b", "https://mlflow.example:443", "sqlite:////home/me/mlflow.db", "s3://bucket/key@v2",
        "hf://datasets/me/set@v2/a.json", "file:///a:b@c", "me@example.org", "a: b@c", "", "https://h/?tokens=1&keyboard=2",
        "http://host:8080", "http://host:8080?x=a@b",
    ],
)  # fmt: skip
def test_what_is_not(text):
    assert uris.mask(text) == text
    assert uris.reveal(uris.hide(text)) == text
    assert uris.ENVIRONMENT not in os.environ


def test_no_record_of_a_study_holds_the_password(small):
    study = small(f"tracking.uri=postgresql://me:{SECRET}@db/runs")
    assert study.tracking.uri == "postgresql://me:***@db/runs"
    assert SECRET not in study.model_dump_json() + repr(study) + str(unreachable(study))
    again = studies.parse(json.loads(study.model_dump_json()))
    assert uris.reveal(again.tracking.uri) == f"postgresql://me:{SECRET}@db/runs"


def test_pods_get_no_password(small):
    study = small(f"tracking.uri=https://me:{SECRET}@mlflow.example")
    (problem,) = [problem for problem in unreachable(study) if "MLFLOW_TRACKING_PASSWORD" in problem]
    assert SECRET not in problem


@pytest.mark.parametrize("kind", [RetuneError, InputError, TrialFailed])
def test_no_error_holds_the_password(kind):
    error = kind(f"cannot reach http://me:{SECRET}@host")
    assert SECRET not in str(error) + repr(error) + repr(vars(error))
    told = InputError([f"a http://me:{SECRET}@host", "b"], f"s3://k:{SECRET}@bucket")
    assert SECRET not in str(told) + repr(vars(told))


def test_the_command_line_does_not_print_it(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(
        f"tracking: {{uri: 'http://me:{SECRET}@host', urr: 'http://me:{SECRET}@host'}}\nname: [\n"
    )
    for words in (["validate", str(file)], ["validate", str(file), f"tracking=http://me:{SECRET}@host"]):
        done = CliRunner().invoke(cli, words)
        assert done.exit_code != 0
        assert SECRET not in done.output + str(done.exception)


def test_processes_that_we_start_can_connect():
    masked = uris.hide(f"mysql://me:{SECRET}@db/runs")
    code = f"from retune import uris; print(uris.reveal({masked!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"mysql://me:{SECRET}@db/runs"


def test_a_masked_password_that_is_not_known_is_asked_for(monkeypatch):
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI"):
        connect("http://me:***@host")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@host")
    assert tracking_uri("http://me:***@host") == "http://me:***@host"
    connect(tracking_uri("sqlite:///other.db"))
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == SECRET


def test_mlflow_does_not_tell_it(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    client = connect(uris.hide(f"http://me:{SECRET}@127.0.0.1:9"))
    with pytest.raises(Exception) as caught:
        client.search_experiments()
    error = caught.value
    while error is not None:
        assert SECRET not in str(error) + repr(error)
        error = error.__cause__ or error.__context__


def test_a_server_is_asked_for_its_version_with_the_password(monkeypatch):
    import base64
    import http.server
    import threading

    from retune.tracking import server

    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Authorization"))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"3.1.0")

        def log_message(self, *words):
            pass

    there = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=there.serve_forever, daemon=True).start()
    try:
        found = server.version(uris.hide(f"http://me:{SECRET}@127.0.0.1:{there.server_port}"))
    finally:
        there.shutdown()
        there.server_close()
    assert found == "3.1.0"
    assert asked == ["Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()]


def test_a_server_with_a_password_is_found_or_named(small):
    from retune.steps.remote import tracking

    (problem,) = tracking(small(f"tracking.uri=http://me:{SECRET}@127.0.0.1:9"))
    assert "http://me:***@127.0.0.1:9 does not answer" in problem
    (problem,) = tracking(small("tracking.uri=http://you:***@127.0.0.1:9"))
    assert "is masked and not known here" in problem


@pytest.mark.parametrize("word", ["://a:b", "http://a", "http://:", "://"])
def test_a_long_text_of_addresses_is_masked_in_the_time_of_its_length(word):
    begin = time.process_time()
    assert uris.mask(word * 20_000) == word * 20_000
    assert uris.mask(word * 20_000 + "http://me:secret@host/x").endswith("@host/x")
    assert "secret" not in uris.mask(word * 20_000 + "http://me:secret@host/x")
    assert time.process_time() - begin < 5
