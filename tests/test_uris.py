"""A password in an address is used for connecting and appears nowhere else."""

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
    message = InputError([f"a http://me:{SECRET}@host", "b"], f"s3://k:{SECRET}@bucket")
    assert SECRET not in str(message) + repr(vars(message))


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


# Made up, in the form that each service gives them; joined, so that no scanner takes them for real ones
SECRETS = {
    "HF_TOKEN": "hf_" + "aBcD1234" * 4,
    "AWS_SECRET_ACCESS_KEY": "wJalrXUt/K7MDENG+bPx",
    "AWS_SESSION_TOKEN": "IQoJb3JpZ2lu//////////wEaCXVz",
    "MLFLOW_TRACKING_PASSWORD": "correct horse battery",
    "RETUNE_WEBHOOK": "https://hooks.slack.com/" + "services/T00000000/B00000000/aBcDeFgHiJkL",
    "OPENAI_API_KEY": "sk-" + "proj-aBcD1234EfGh5678",
    "GITHUB_TOKEN": "ghp_" + "aBcD1234" * 4,
    "GITLAB_TOKEN": "glpat-" + "aBcD1234EfGh5678IjKl",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "SLACK_BOT_TOKEN": "xoxb-" + "123456789012-aBcDeFgH",
}


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_of_the_environment_is_in_no_error(name, monkeypatch):
    """A server may repeat what it was sent, and a library the request that failed."""
    secret = SECRETS[name]
    monkeypatch.setenv(name, secret)
    message = RetuneError(f"the server answered 401: header Authorization: {secret}, of {secret!r}")
    assert secret not in str(message)
    assert "401" in str(message)
    assert secret not in str(InputError([f"a {secret}", "b"], secret)) + TrialFailed(f"a {secret}").reason


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl",
        *(
            SECRETS[n]
            for n in (
                "HF_TOKEN",
                "RETUNE_WEBHOOK",
                "OPENAI_API_KEY",
                "GITHUB_TOKEN",
                "GITLAB_TOKEN",
                "SLACK_BOT_TOKEN",
            )
        ),
    ],
)
def test_a_token_is_known_by_its_form(text):
    """For instance one from a kubeconfig or a file, which is in no environment variable."""
    assert text.split(" ")[-1].rsplit("/", 1)[-1] not in str(RetuneError(f"refused: {text}"))


@pytest.mark.parametrize(
    "text",
    ["hf_home", "sk-learn is there", "a Bearer", "ghp_", "the tokens are 12", "https://hooks.slack.com/"],
)
def test_what_only_looks_like_a_token(text):
    assert str(RetuneError(text)) == text


def test_short_values_and_paths_are_no_secrets(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "1")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "retune-user")
    assert str(RetuneError("1 of /var/run/token by retune-user")) == "1 of /var/run/token by retune-user"


@pytest.mark.parametrize(
    "entry",
    ["OPENAI_API_KEY: hunter2hunter2", "MY_PASSWORD: hunter2hunter2", "SLACK_WEBHOOK_URL: https://hooks.example/hunter2", "HTTPS_PROXY: 'http://me:hunter2@proxy:3128'",
     "AWS_ENDPOINT_URL: 'https://key:hunter2@s3.example'"],
)  # fmt: skip
def test_the_environment_of_pods_holds_no_secret(entry, small):
    """Many people can read a stored study, and `retune render` prints it."""
    name = entry.partition(":")[0]
    with pytest.raises(InputError, match=f"'{name}'.* belong in a Secret") as caught:
        small(f"cluster.env={{{entry}}}")
    assert SECRET not in str(caught.value)
    small("cluster.env={HF_HUB_DISABLE_IMPLICIT_TOKEN: '1', HTTPS_PROXY: 'http://proxy:3128'}")


def test_an_error_that_nobody_foresaw_is_printed_without_secrets(monkeypatch, capsys):
    from retune import cli as commands

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse")
    monkeypatch.setattr(
        commands,
        "cli",
        lambda **words: (_ for _ in ()).throw(KeyError(f"\x1b[2J correct-horse http://a:{SECRET}@h")),
    )
    with pytest.raises(SystemExit) as ended:
        commands.main()
    message = capsys.readouterr().err
    assert ended.value.code == 1
    assert "Traceback" in message
    assert "correct-horse" not in message
    assert SECRET not in message
    assert "\x1b" not in message
