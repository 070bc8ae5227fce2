"""Fixtures for tests that need S3: `moto` is a real server, `s3` a new bucket on it; see `pytest_plugins`.

`moto_server` is the same server, which can be stopped and started.
"""

from __future__ import annotations

import os
import threading
from uuid import uuid4

import pytest


class Server:
    """Moto's server; one request at a time, as its check-then-put of conditional writes is a race."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self._app = DomainDispatcherApplication(create_backend_app)
        self.port = 0
        self.start()

    def start(self) -> None:
        """Listen, on the same port as before; what was stored is still there."""
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log_request(self, *_):
                pass

        self._server = make_server("127.0.0.1", self.port, self._app, threaded=False, request_handler=Quiet)
        self.port = self._server.server_port
        loop = {"poll_interval": 0.02}
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs=loop, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="session")
def moto_server():
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def moto(moto_server):
    return f"http://127.0.0.1:{moto_server.port}"


@pytest.fixture
def s3(moto, monkeypatch, tmp_path):
    """Return the URI of a new bucket, and let the environment point to its server."""
    from retune.store.s3 import _client

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("RETUNE_CACHE", str(tmp_path / "cache"))
    bucket = f"bucket-{uuid4().hex[:12]}"
    _client().create_bucket(Bucket=bucket)
    return f"s3://{bucket}"
