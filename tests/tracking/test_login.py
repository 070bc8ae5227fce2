"""MLflow with the chart's login: a real server, the account created by the chart's script, and who has access."""

import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from retune.errors import InputError, RetuneError
from retune.registry.aliases import aliases
from retune.registry.promotion import promote
from retune.registry.versions import register
from retune.steps.check import check
from retune.tracking import server
from tests.conftest import ROOT
from tests.mlflow_server import Server
from tests.registry.test_promotion import adapter  # noqa: F401
from tests.selection.test_choice import trial

pytest_plugins = ["tests.mlflow_server"]
pytestmark = pytest.mark.slow
PASSWORD = "a-password-with-%-in-it"
FILES = ROOT / "charts/retune/files"


def give_account(guarded, password):
    """What the chart's init container `login` does."""
    words = [sys.executable, str(FILES / "mlflow_login.py"), str(guarded.folder / "basic_auth.ini")]
    account = {"MLFLOW_TRACKING_USERNAME": "retune", "MLFLOW_TRACKING_PASSWORD": password}
    env = {**os.environ, **account, "MLFLOW_BACKEND_STORE_URI": guarded.database}
    subprocess.run(words, check=True, env=env, timeout=300)


@pytest.fixture(scope="module")
def guarded(empty_database, tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    shutil.copy(empty_database, folder / "100%.db")  # the file's address is read with interpolation
    found = Server(
        folder, f"sqlite:///{folder}/100%.db", str(folder / "artifacts"), "--app-name", "basic-auth",
        MLFLOW_AUTH_CONFIG_PATH=str(folder / "basic_auth.ini"), MLFLOW_FLASK_SERVER_SECRET_KEY="signs",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )  # fmt: skip
    give_account(found, PASSWORD)
    found.start()
    yield found
    found.kill()


@pytest.fixture
def log_in(monkeypatch):
    """Return a function that gives this process, and those that it starts, a user and a password."""

    def give(user=None, password=None):
        for name, value in (("MLFLOW_TRACKING_USERNAME", user), ("MLFLOW_TRACKING_PASSWORD", password)):
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
        server.problem.cache_clear()  # asked once in a process otherwise

    yield give
    server.problem.cache_clear()


def status(address):
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_nobody_is_let_in_without_an_account_but_the_probes(guarded):
    assert status(f"{guarded.uri}/health") == 200
    for path in ("/", "/version", "/api/2.0/mlflow/experiments/search?max_results=1", "/api/2.0/mlflow-artifacts/artifacts"):  # fmt: skip
        assert status(guarded.uri + path) == 401, path


@pytest.mark.parametrize(
    ("account", "answer"),
    [((), "requires a login"), (("retune", "wrong-password"), "rejects the given MLFLOW_TRACKING_USERNAME")],
)  # fmt: skip
def test_a_study_that_would_be_refused_at_its_end_is_refused_at_once(guarded, log_in, small, account, answer):
    log_in(*account)
    with pytest.raises(InputError, match=f"tracking.uri: {guarded.uri} {answer}"):
        check(small(f"tracking.uri={guarded.uri}"))
    with pytest.raises(RetuneError, match=answer):
        aliases(guarded.uri, "model")


def test_an_account_that_may_only_read_is_told_so(guarded, log_in, adapter):  # noqa: F811
    """MLflow lets everyone read the model of others, and only them change it."""
    from mlflow.server import get_app_client

    log_in("retune", PASSWORD)
    register(guarded.uri, "m", trial(1, 1.9, "search"), adapter("a"), study="demo")
    get_app_client("basic-auth", tracking_uri=guarded.uri).create_user("reader", "a-readers-password")
    log_in("reader", "a-readers-password")
    assert aliases(guarded.uri, "m").challenger == "1"
    for change in (
        lambda: promote(guarded.uri, "m", "1", None),
        lambda: register(guarded.uri, "m", trial(2, 1.8, "search"), adapter("b"), study="demo"),
    ):
        with pytest.raises(
            RetuneError, match=r"MLflow refused \(PERMISSION_DENIED\): .*whether the account may do this"
        ):
            change()


def test_helms_test_passes_with_the_account_and_a_changed_password_counts_from_the_next_start(guarded, log_in, small):  # fmt: skip
    def helms_test():
        words = [sys.executable, str(FILES / "check_mlflow.py"), guarded.uri]
        return subprocess.run(words, capture_output=True, text=True, timeout=300)

    log_in("retune", PASSWORD)
    check(small(f"tracking.uri={guarded.uri}"))
    done = helms_test()
    assert done.returncode == 0, done.stderr
    assert "keeps metrics and artifacts" in done.stdout

    guarded.kill()
    give_account(guarded, "another-password")
    guarded.start()
    assert helms_test().returncode == 1
    log_in("retune", "another-password")
    assert helms_test().returncode == 0
