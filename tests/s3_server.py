"""Fixtures for tests that need S3: `moto` is a real server, `s3` a new bucket on it; see `pytest_plugins`."""

from __future__ import annotations

import os
import threading
from uuid import uuid4

import pytest


@pytest.fixture(scope="session")
def moto():
    """Moto's server; one request at a time, as its check-then-put of conditional writes is a race."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_):
            pass

    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=False, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


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
