"""An MLflow server that is too old is reported before any compute is spent: by `validate`, the registry and `helm test`.

With MLflow 2.22.0 itself `list_artifacts` of a run ends with 404; here a server tells that version and answers 404 to all else.
"""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from retune.errors import InputError, RetuneError
from retune.registry import promotion
from retune.registry.aliases import aliases
from retune.steps.check import check
from retune.tracking import server
from tests.conftest import ROOT


@pytest.fixture
def old():
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            known = self.path == "/version"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(b"2.22.0" if known else b"")

        do_POST = do_GET

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


TOLD = r"must be 3\.0 or newer, but http://127\.0\.0\.1:\d+ is 2\.22\.0"


def test_validate_refuses_it(old, small):
    with pytest.raises(InputError, match=f"tracking.uri: the MLflow server {TOLD}"):
        check(small(f"tracking.uri={old}"))
    check(small("tracking.uri=http://127.0.0.1:9"), tracking=False)  # one that is away is waited for


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
