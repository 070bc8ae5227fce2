"""S3 servers that differ from AWS in what they require or lack, imitated by a proxy before moto."""

import http.client
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from retune import store

pytest_plugins = ["tests.s3_server"]


@pytest.fixture
def server(s3, moto, monkeypatch):
    """A server with traits: `ignores If-None-Match`, `refuses If-None-Match`, `wants Content-MD5`; `asked` lists the requests."""
    target, traits, asked = urlsplit(moto), set(), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def reply(self, status, headers, data):
            self.send_response(status)
            for key, value in headers:
                if key.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(key, value)
            length = dict(headers).get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def refuse(self, status, code):
            self.reply(status, [], f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

        def pass_on(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append((self.command, self.path, dict(self.headers)))
            headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
            headers["Host"] = target.netloc
            if "refuses If-None-Match" in traits and "If-None-Match" in headers:
                return self.refuse(501, "NotImplemented")
            if "ignores If-None-Match" in traits:
                headers.pop("If-None-Match", None)
            if "wants Content-MD5" in traits and "?delete" in self.path and "Content-MD5" not in headers:
                return self.refuse(400, "MissingContentMD5")
            connection = http.client.HTTPConnection(target.hostname, target.port, timeout=60)
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            self.reply(answer.status, answer.getheaders(), answer.read())
            connection.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.traits, running.asked = traits, asked
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{running.server_port}")
    yield running
    running.shutdown()
    running.server_close()


def test_a_folder_is_deleted_where_content_md5_is_wanted(server, s3):
    server.traits.add("wants Content-MD5")
    for name in ("a", "b"):
        store.write(f"{s3}/folder/{name}", b"x")
    store.remove(f"{s3}/folder")
    assert store.listing(f"{s3}/folder") == []


@pytest.mark.slow
@pytest.mark.parametrize("trait", ["ignores If-None-Match", "refuses If-None-Match"])
def test_a_server_without_conditional_writes_is_told_of_once_and_nothing_is_written_over(
    server, s3, caplog, trait
):
    server.traits.add(trait)
    with caplog.at_level(logging.WARNING, logger="retune.store"):
        assert store.create(f"{s3}/a/record", b"first")
        assert not store.create(f"{s3}/a/record", b"second")
        assert store.create(f"{s3}/a/other", b"third")
    assert store.read(f"{s3}/a/record") == b"first"
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "no conditional writes (If-None-Match)" in warnings[0]
    assert store.listing(f"{s3}/a") == ["other", "record"]


def test_a_server_with_conditional_writes_is_asked_once(server, s3, caplog):
    for name in ("a", "b", "c"):
        assert store.create(f"{s3}/{name}", b"x")
        assert not store.create(f"{s3}/{name}", b"y")
    assert [record for record in caplog.records if record.name.startswith("retune")] == []
    probes = [path for command, path, _ in server.asked if command == "PUT" and ".probe-" in path]
    assert len(probes) == 2
