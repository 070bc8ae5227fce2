"""An MLflow server that is too old, or none, is reported before any compute is spent: by `validate`, the registry and `helm test`.

With MLflow 2.22.0 itself `list_artifacts` of a run ends with 404; here a server tells that version and answers 404 to all else.
"""

import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from retune.errors import InputError, RetuneError
from retune.registry import promotion
from retune.registry.aliases import aliases
from retune.steps.check import check
from retune.tracking import server
from tests.conftest import ROOT


@contextmanager
def answering(answer):
    """A server that answers with the status and the text that `answer` returns for a path."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            status, text = answer(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        running.server_close()


@pytest.fixture
def old():
    with answering(lambda path: (200, b"2.22.0") if path == "/version" else (404, b"")) as address:
        yield address


TOLD = r"must be 3\.0 or newer, but http://127\.0\.0\.1:\d+ is 2\.22\.0"


def test_validate_refuses_it(old, small):
    with pytest.raises(InputError, match=f"tracking.uri: the MLflow server {TOLD}"):
        check(small(f"tracking.uri={old}"))
    check(small("tracking.uri=http://127.0.0.1:9"), tracking=False)  # one that is away is waited for


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [(404, b"<html>nothing here</html>", "404"), (200, b"<html>Sign in</html>", "a page for browsers")],
)
def test_an_address_that_is_not_mlflows_is_refused_before_anything_runs(small, status, text, said):
    """As with a path left out, or a login page in front: nothing was said before the end, when the model is registered."""
    with answering(lambda path: (status, text)) as other:
        message = rf"not as an MLflow server does \({said}\): see whether a path"
        with pytest.raises(InputError, match=f"tracking.uri: {other} answers, but {message}"):
            check(small(f"tracking.uri={other}"))
        with pytest.raises(RetuneError, match=message):
            aliases(other, "model")


def test_a_server_below_a_path_that_reports_no_version_is_taken():
    """As hosted ones are."""

    def answer(path):
        return (200, b'{"experiments": []}') if path.startswith("/mlflow/api/2.0/") else (404, b"")

    with answering(answer) as address:
        assert server.problem(f"{address}/mlflow/") is None
        assert "404" in server.problem(address)


def test_the_registry_refuses_it(old):
    with pytest.raises(RetuneError, match=TOLD):
        aliases(old, "model")
    with pytest.raises(RetuneError, match=r"http://127.0.0.1:9 does not answer: .*refused"):
        promotion.rollback("http://127.0.0.1:9", "model")


@pytest.mark.slow
def test_helms_test_refuses_it(old):
    done = subprocess.run(
        [sys.executable, str(ROOT / "charts/retune/files/check_mlflow.py"), old],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "must be 3.0 or newer" in done.stderr


def test_a_database_has_no_version(tmp_path):
    assert server.problem(f"sqlite:///{tmp_path}/mlflow.db") is None
